"""What the driver passes on of a worker, without a cluster."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError, RayTaskError  # pyright: ignore[reportMissingImports]

from loraloom.cluster import driver
from loraloom.cluster.driver import Driver
from loraloom.jobs import frames

ENTRY = {"filename": "a_00001_.png", "subfolder": "", "type": "output"}
PICTURE = bytes(range(256)) * 2


class Call:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def remote(self, *given: Any) -> Any:
        return self._function(*given)


class Actor:
    """A worker that said that it saved two files. broken: how often the connection breaks at a last piece."""

    def __init__(self, broken: int = 0) -> None:
        self.broken, self.seen = broken, list[int]()
        self.receive, self.read = Call(self._receive), Call(self._read)

    def _receive(self, seen: int) -> Any:
        self.seen.append(seen)
        message = {"kind": "node_finished", "job": "j", "ui": {"images": [ENTRY, ENTRY]}}
        said = (1, message, b"", [(ENTRY, len(PICTURE))] * 2)
        end = (2, {"kind": "ended", "reason": "enough"}, b"", [])
        return 0.0, [said, end][seen:]

    def silent(self, seen: int) -> Any:
        raise TimeoutError

    def _read(self, file: tuple[int, int], offset: int) -> bytes:
        if file == (1, 1) and offset == 500 and self.broken:
            self.broken -= 1
            raise TimeoutError
        return PICTURE[offset : offset + 100]


class Played(Driver):
    async def listen(self, actor: Actor) -> Any:
        """Why it gave the worker up."""
        try:
            await self._listen("w", actor)
        except driver._GivenUp as error:  # pyright: ignore[reportPrivateUsage]
            return error


def play(folder: Path, actor: Actor) -> tuple[Any, list[dict[str, Any]]]:
    """How it ended, and what the driver said."""
    sink = io.BytesIO()
    end = asyncio.run(Played(sink, folder).listen(actor))
    sink.seek(0)
    said: list[dict[str, Any]] = []
    while (frame := frames.read(sink)) is not None:
        said.append(cast("dict[str, Any]", frame[0]))
    return end, [message for message in said if message["kind"] != "alive"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "PIECE_BYTES", 100)


@pytest.mark.parametrize("broken", [0, 2])
def test_files_come_in_pieces_and_whole_also_when_the_connection_breaks(tmp_path: Path, broken: int) -> None:
    end, (said,) = play(tmp_path, actor := Actor(broken))
    assert (str(end), end.lost) == ("enough", False)
    assert [entry for entry, _ in said["files"]] == [ENTRY, ENTRY]
    assert {Path(path).read_bytes() for _, path in said["files"]} == {PICTURE}
    assert len([*tmp_path.iterdir()]) == 2, "what came in part is deleted"
    assert actor.seen == [0] * (broken + 1)


def test_where_nothing_can_be_written_the_worker_is_given_up_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    end, said = play(tmp_path, Actor())
    assert "No space left on device" in str(end) and not end.lost and not said
    assert [*tmp_path.iterdir()] == []


def test_a_node_of_another_version_is_not_called_lost(tmp_path: Path) -> None:
    text = "ValueError: this node has Loraloom 9.9.9, the head 0.1.0; install the same"
    raised = RayTaskError("NodeWorker.__init__", f"Traceback\n{text}", ValueError(text), "ray", 1, "10.0.0.6")
    sink = io.BytesIO()
    asyncio.run(Played(sink, tmp_path)._ended("w", "n", ActorDiedError(raised)))  # pyright: ignore[reportPrivateUsage]
    frame = frames.read(io.BytesIO(sink.getvalue()))
    assert frame is not None
    assert (frame[0]["reason"], frame[0]["lost"]) == (text, False)


def test_a_worker_that_is_not_heard_of_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SILENCE_SECONDS", 0.2)
    actor = Actor()
    actor.receive = Call(actor.silent)
    end, said = play(tmp_path, actor)
    assert end.lost and "nothing was heard" in str(end) and not said


@pytest.mark.parametrize(
    ("given", "host"),
    [("gpu-worker-x7", "gpu-worker-x7"), ("10.0.0.6", "blue"), ("", "blue"), ("a/b", "a-b")],
)
def test_a_node_is_called_as_it_was_started(given: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"NodeID": "n", "NodeManagerAddress": "10.0.0.6", "NodeManagerHostname": "blue", "Alive": True,
            "NodeName": given, "Resources": {"loraloom": 2.0}}  # fmt: skip
    monkeypatch.setattr(driver.ray, "nodes", lambda: [node, {**node, "Alive": False}])
    (found,) = driver._nodes()  # pyright: ignore[reportPrivateUsage]
    assert (found["host"], found["workers"]) == (host, 2)
