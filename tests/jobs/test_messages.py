"""What leaves the worker for an engine event."""

from __future__ import annotations

import errno
import json
from typing import Any, cast

import pytest
from PIL import Image

from loraloom.engine.events import (
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodeNote,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarning,
    Partial,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from loraloom.errors import DiskFull, InputError
from loraloom.jobs.messages import Encoder, describe, problem, read_problem
from loraloom.workflow.report import Problem


class Shown:
    """A preview that keeps how it was asked for."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def picture(self, method: str = "auto") -> Image.Image:
        self.methods.append(method)
        return Image.new("RGB", (4, 4))


def test_a_preview_is_made_in_the_way_that_was_asked_for() -> None:
    shown = Shown()
    event = NodeProgress("3", "3", 1, 4, shown)
    assert Encoder("latent2rgb").frame(event)[1].startswith(b"\xff\xd8")
    assert Encoder("").frame(event)[1] == b""
    assert shown.methods == ["latent2rgb"]
    plain = NodeProgress("3", "3", 1, 4, Image.new("RGB", (4, 4)))
    assert Encoder("taesd").frame(plain)[1].startswith(b"\xff\xd8")


FAILED = NodeFailed("3:1", "3", "KSampler", "mine", ValueError("no"), {"steps": 4}, ("1",), ("9",))
SAID: list[tuple[Event, dict[str, Any]]] = [
    (RunStarted(("1", "2"), ("2",)), {"kind": "run_started", "nodes": ["1", "2"], "targets": ["2"]}),
    (NodesCached(("1",)), {"kind": "cached", "nodes": ["1"]}),
    (
        NodeStarted("3:1", "3", "X"),
        {"kind": "node_started", "node": "3:1", "display": "3", "class_type": "X"},
    ),
    (
        NodeProgress("3:1", "3", 1, 4),
        {"kind": "progress", "node": "3:1", "display": "3", "value": 1, "max": 4},
    ),
    (NodeNote("3", "lora", {"a": 1}), {"kind": "note", "node": "3", "note": "lora", "payload": {"a": 1}}),
    (NodeWarning("3", "slow"), {"kind": "warning", "node": "3", "message": "slow"}),
    (
        NodeBlocked("3:1", "3", "X", "no"),
        {"kind": "blocked", "node": "3:1", "display": "3", "class_type": "X", "message": "no"},
    ),
    (
        NodeFinished("3:1", "3", "X", {"text": ["a"]}, (1,), True, "2"),
        {
            "kind": "node_finished", "node": "3:1", "display": "3", "parent": "2", "class_type": "X",
            "ui": {"text": ["a"]}, "cached": True,
        },
    ),
    (RunFinished(("1",)), {"kind": "completed", "executed": ["1"], "partial": None}),
    (
        RunFinished(("1",), Partial(("3",), ("8", "9"), ("9",), ("1",))),
        {
            "kind": "completed", "executed": ["1"],
            "partial": {"failed": ["3"], "blocked": ["8", "9"], "blocked_outputs": ["9"], "outputs": ["1"]},
        },
    ),
    (RunCancelled("3", ("1",)), {"kind": "cancelled", "node": "3", "executed": ["1"]}),
]  # fmt: skip


@pytest.mark.parametrize(("event", "said"), SAID, ids=lambda one: type(one).__name__)
def test_every_event_leaves_as_json(event: Event, said: dict[str, Any]) -> None:
    message, tail = Encoder("").frame(event)
    assert (json.loads(json.dumps(message)), tail) == (said, b"")


def test_a_nodes_failure_says_which_why_and_with_what() -> None:
    wanted = {
        "type": "ValueError", "message": "node 3:1 \u201cmine\u201d (KSampler): no",
        "exception_message": "no",
        "node": "3:1", "display": "3", "class_type": "KSampler", "title": "mine", "inputs": {"steps": 4},
        "executed": ["1"], "blocked": ["9"], "traceback": [],
    }  # fmt: skip
    assert Encoder("").frame(FAILED)[0] == {"kind": "node_failed", **wanted}
    assert Encoder("").frame(RunFailed(FAILED.exception, FAILED))[0] == {
        "kind": "failed", "error": wanted, "partial": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no"), "ValueError", "no"),
        (ValueError(), "ValueError", "ValueError"),
        (InputError("no"), "loraloom.errors.InputError", "no"),
        (DiskFull("full"), "disk_full", "full"),
        (OSError(errno.ENOSPC, "no space"), "disk_full", "[Errno 28] no space"),
        (OSError(errno.EACCES, "no right"), "PermissionError", "[Errno 13] no right"),
    ],
)
def test_a_failure_of_no_node_says_its_kind(error: Exception, kind: str, message: str) -> None:
    found: Any = Encoder("").frame(RunFailed(error))[0]["error"]
    assert (found["type"], found["message"], found["exception_message"]) == (kind, message, message)


def test_a_traceback_is_of_the_last_thirty_calls() -> None:
    def even(more: int) -> None:
        odd(more)

    def odd(more: int) -> None:
        if not more:
            raise ValueError("at the bottom")
        even(more - 1)

    with pytest.raises(ValueError) as raised:
        even(50)
    lines = cast("list[str]", describe(raised.value)["traceback"])
    assert len(lines) == 30 and "at the bottom" in lines[-1]


def test_previews_come_a_few_per_second_and_what_is_no_picture_is_none() -> None:
    encoder, shown = Encoder("auto"), NodeProgress("3", "3", 1, 4, Image.new("RGB", (4, 4)))
    assert [bool(encoder.frame(shown)[1]) for _ in range(3)] == [True, False, False]
    assert Encoder("auto").frame(NodeProgress("3", "3", 1, 4, object()))[1] == b""


def test_a_problem_comes_back_as_it_was() -> None:
    found = Problem(
        "value_not_in_list", "no such file", "x.safetensors", "3", "3 \u201cmine\u201d", "LoraLoader"
    )
    assert read_problem(json.loads(json.dumps(problem(found)))) == found
