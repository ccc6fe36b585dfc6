"""A runner without tensors, for tests: its nodes sleep, save, fail, crash or hang."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import psutil

from loraloom.atomic_file import write_file
from loraloom.engine.cache import Cache
from loraloom.engine.events import Event
from loraloom.engine.node import NodeResult, NodeRun, NodeType, Optional_, Socket, node, node_types
from loraloom.engine.run import run
from loraloom.engine.together import Start, Told, run_together
from loraloom.engine.validation import own_checks
from loraloom.errors import InputError
from loraloom.jobs.job import Request
from loraloom.jobs.messages import problem
from loraloom.turns import Turns
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.graph import JSON

Any_ = Annotated[object, Socket("*")]


class Picture:
    def save(self, file: Any, kind: str, quality: int) -> None:
        file.write(b"\xff\xd8 not really a JPEG")


@node("Number", category="test")
def number(value: int = 0) -> int:
    return value


@node("Save", category="test", output_node=True)
def save(value: Any_, name: Annotated[str, Optional_()] = "x", *, run: NodeRun) -> NodeResult:
    folder = cast("Path", run.services)
    folder.mkdir(parents=True, exist_ok=True)
    count = len([*folder.iterdir()])
    file = folder / f"{name}_{count:05}_.txt"
    file.write_text(str(value))
    return NodeResult(ui={"images": [{"filename": file.name, "subfolder": "", "type": "output"}]})


@node("Write", category="test", output_node=True)
def write(value: Any_, seconds: Annotated[float, Optional_()] = 0.5, *, run: NodeRun) -> NodeResult:
    """Takes its time to write a file."""

    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            time.sleep(seconds / 10)
            yield str(value).encode()

    write_file(cast("Path", run.services) / "slow.txt", pieces())
    return NodeResult(ui={"text": ["written"]})


@node("Wait", category="test")
def wait(
    value: Any_, seconds: Annotated[float, Optional_()] = 0.1, *, run: NodeRun
) -> Annotated[object, Socket("*")]:
    steps = max(1, int(seconds / 0.02))
    for step in range(steps):
        run.progress(step + 1, steps, Picture())
        time.sleep(0.02)
    run.note("lora", {"node": run.node_id, "matched": 2, "name": "a"})
    run.note("embeddings", {"lora": "a", "words": ["b"]})
    run.note("text", "no receipt")
    run.warn("slow")
    return value


@node("Hold", category="test")
def hold(value: Any_, *, run: NodeRun) -> Annotated[object, Socket("*")]:
    """Goes on when the file `go` lies beside the output folder."""
    while not cast("Path", run.services).with_name("go").exists():
        time.sleep(0.02)
    return value


def _check_even(value: int) -> bool | str:
    return True if value % 2 == 0 else f"{value} is odd"


@node("Even", category="test", validate=_check_even, output_node=True)
def even(value: int) -> NodeResult:
    return NodeResult(ui={"text": [str(value)]})


@node("Fail", category="test")
def fail(value: Any_) -> Annotated[object, Socket("*")]:
    raise RuntimeError(f"cannot use {value}")


@node("Crash", category="test")
def crash(value: Any_, once: Annotated[str, Optional_()] = "") -> Annotated[object, Socket("*")]:
    if once and Path(once).exists():
        return value
    if once:
        Path(once).touch()
    psutil.Process().kill()
    return value


@node("Hang", category="test")
def hang(value: Any_) -> Annotated[object, Socket("*")]:
    print("hanging", file=sys.stdout)  # noqa: T201 - what nodes print must not disturb the worker
    threading.Event().wait(3600)
    return value


@node("Meet", category="test")
def meet(
    value: Any_, times: Annotated[int, Optional_()] = 1, *, run: NodeRun
) -> Annotated[object, Socket("*")]:
    """Asks so many times together with others; gives how many there were in all."""
    turns = TURNS[-1] if TURNS else None
    met = 0
    for time_ in range(times):
        met += turns.ask(1) if turns is not None and turns.is_here() else 1
        run.progress(time_ + 1, times)
        time.sleep(0.02)
    return met


TURNS: list[Turns[int, int]] = []
NODES: dict[str, NodeType] = {
    t.name: t for f in (number, save, write, wait, hold, even, fail, crash, hang, meet) for t in node_types(f)
}


class TinyRunner:
    def __init__(self, settings: Mapping[str, JSON]) -> None:
        self._output = Path(str(settings["output"]))
        self._cache = Cache("none")

    def run(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        return run(
            parse_api(dict(request.prompt)), NODES, targets=request.targets, cache=self._cache,
            services=self._output, cancel=cancel, policy=request.policy,
        )  # fmt: skip

    def run_together(
        self, requests: Sequence[Request], cancels: Sequence[threading.Event], rows: int
    ) -> Iterator[Told]:
        TURNS.append(Turns(len(requests), lambda asked: dict.fromkeys(asked, len(asked))))

        def starting(request: Request, cancel: threading.Event) -> Start:
            return lambda inside: run(
                parse_api(dict(request.prompt)), NODES, targets=request.targets, cache=self._cache,
                services=self._output, cancel=cancel, inside=inside, policy=request.policy,
            )  # fmt: skip

        starts = [starting(request, cancel) for request, cancel in zip(requests, cancels, strict=True)]
        return run_together(TURNS[-1], starts, [cancel.is_set for cancel in cancels], nullcontext)

    def describe(self) -> dict[str, JSON]:
        return {"devices": [], "pid": os.getpid(), "environment": [*os.environ]}

    def declared(self) -> JSON:
        return None

    def check(self, request: Request) -> list[JSON]:
        return [problem(p) for p in own_checks(parse_api(dict(request.prompt)), NODES, request.prompt)]

    def free(self, models: bool, results: bool) -> None:
        self._cache.clear()


def make(settings: Mapping[str, JSON]) -> TinyRunner:
    return TinyRunner(settings)


def slow(settings: Mapping[str, JSON]) -> TinyRunner:
    time.sleep(1.5)
    return TinyRunner(settings)


def broken(settings: Mapping[str, JSON]) -> TinyRunner:
    raise RuntimeError("no such device")


def refusing(settings: Mapping[str, JSON]) -> TinyRunner:
    raise InputError("there is no usable CUDA device")


def prompt(kind: str = "Number", **inputs: JSON) -> dict[str, JSON]:
    """A graph that gives a number through a node of some kind to Save."""
    graph: dict[str, JSON] = {"1": {"class_type": "Number", "inputs": {"value": inputs.pop("value", 7)}}}
    last: JSON = ["1", 0]
    if kind != "Number":
        graph["2"] = {"class_type": kind, "inputs": {"value": last, **inputs}, "_meta": {"title": "middle"}}
        last = ["2", 0]
    graph["9"] = {"class_type": "Save", "inputs": {"value": last, "name": "out"}}
    return graph
