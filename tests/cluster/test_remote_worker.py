"""A worker on another machine as the queue sees it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from loraloom.cluster.incoming import Incoming
from loraloom.cluster.remote_worker import RemoteWorker
from loraloom.jobs.frames import BrokenFrame


def worker(folder: Path) -> tuple[RemoteWorker, list[Any]]:
    orders: list[Any] = []
    return RemoteWorker(orders.append, Incoming(folder / "output", folder / "temp")), orders


def staged(folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(name.encode())
    return str(path)


def saved(folder: Path, name: str) -> dict[str, Any]:
    entry = {"filename": "a_00001_.png", "subfolder": "", "type": "output"}
    message = {"kind": "node_finished", "job": "j", "node": "9", "ui": {"images": [entry]}}
    return {"kind": "said", "message": message, "files": [[entry, staged(folder, name)]]}


def said(kind: str) -> dict[str, Any]:
    return {"kind": "said", "message": {"kind": kind, "job": "j"}, "files": []}


def test_what_names_files_waits_for_the_end_of_the_job(tmp_path: Path) -> None:
    async def test() -> None:
        place, _ = worker(tmp_path)
        place.heard(saved(tmp_path, "one"), b"")
        place.heard(said("progress"), b"preview")
        place.heard(saved(tmp_path, "two"), b"")
        place.heard(said("completed"), b"")
        assert await place.receive() == ({"kind": "progress", "job": "j"}, b"preview")
        frame = await place.receive()
        assert frame is not None
        held: Any = frame[0]["held"]
        assert [m["ui"]["images"][0]["filename"] for m in held] == ["a_00001_.png", "a_00002_.png"]
        assert frame[0]["publish"] == [
            (str(tmp_path / "one"), str(tmp_path / "output/a_00001_.png")),
            (str(tmp_path / "two"), str(tmp_path / "output/a_00002_.png")),
        ]

    asyncio.run(test())


def test_names_are_promised_until_the_next_job_begins(tmp_path: Path) -> None:
    async def test() -> None:
        incoming = Incoming(tmp_path / "output", tmp_path / "temp")
        place = RemoteWorker(lambda order: None, incoming)
        place.heard(saved(tmp_path, "one"), b"")
        place.heard(said("completed"), b"")
        assert incoming.promised_names == {tmp_path / "output/a_00001_.png"}
        await place.send({"order": "run", "job": "k", "request": {"prompt": {}}})
        assert not incoming.promised_names
        assert (tmp_path / "one").exists()

    asyncio.run(test())


def test_what_a_job_made_that_never_ended_is_thrown_away(tmp_path: Path) -> None:
    async def test() -> None:
        place, _ = worker(tmp_path)
        place.heard(saved(tmp_path, "one"), b"")
        place.heard({"kind": "ended", "reason": "lost", "lost": True}, b"")
        place.heard(saved(tmp_path, "late"), b"")
        assert await place.receive() is None
        assert place.out_of_reach and not place.alive and await place.gone() == "lost"
        assert not (tmp_path / "one").exists() and not (tmp_path / "late").exists()

    asyncio.run(test())


def test_nonsense_is_said_to_be_such(tmp_path: Path) -> None:
    async def test() -> None:
        place, _ = worker(tmp_path)
        broken = saved(tmp_path, "one")
        broken["files"][0][0] = {"type": "output", "filename": "../../x"}
        place.heard(broken, b"")
        with pytest.raises(BrokenFrame):
            await place.receive()

    asyncio.run(test())


def test_an_answer_comes_or_does_not(tmp_path: Path) -> None:
    async def test() -> None:
        place, orders = worker(tmp_path)
        asking = asyncio.create_task(place.ask({"request": {}}, 5.0))
        await asyncio.sleep(0)
        place.heard({"kind": "answer", "to": orders[0]["to"], "answer": [1]}, b"")
        assert await asking == [1]
        with pytest.raises(TimeoutError):
            await place.ask({}, 0.01)

    asyncio.run(test())


class Slow:
    """Files of the head that take their time, or cannot be read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.go, self.error = threading.Event(), threading.Event(), error

    def of(self, prompt: Any) -> list[Any]:
        self.asked.set()
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        return []


JOB: dict[str, Any] = {"order": "run", "job": "j", "request": {"prompt": {}}}


def test_a_job_that_is_cancelled_while_its_files_are_read_is_never_sent(tmp_path: Path) -> None:
    async def test() -> None:
        orders, offer = list[Any](), Slow()
        place = RemoteWorker(
            orders.append, Incoming(tmp_path / "output", tmp_path / "temp"), cast("Any", offer)
        )
        sending = asyncio.create_task(place.send(JOB))
        await asyncio.to_thread(offer.asked.wait, 20)
        await place.send({"order": "cancel", "job": "j"})
        offer.go.set()
        await sending
        frame = await place.receive()
        assert frame is not None and (frame[0]["kind"], frame[0]["job"]) == ("cancelled", "j")
        assert orders == []
        await place.send(JOB)
        await place.send({"order": "cancel", "job": "j"})
        assert [order["message"]["order"] for order in orders] == ["run", "cancel"]

    asyncio.run(test())


def test_a_file_of_the_head_that_cannot_be_read_fails_its_job(tmp_path: Path) -> None:
    """It is no fault of the server's, nor of the worker's."""

    async def test() -> None:
        offer = Slow(PermissionError(13, "Permission denied", "/models/hat.safetensors"))
        offer.go.set()
        incoming = Incoming(tmp_path / "output", tmp_path / "temp")
        place = RemoteWorker(lambda order: None, incoming, cast("Any", offer))
        await place.send(JOB)
        frame = await place.receive()
        assert frame is not None and (frame[0]["kind"], frame[0]["job"]) == ("failed", "j")
        error: Any = frame[0]["error"]
        assert "hat.safetensors" in error["message"] and place.alive

    asyncio.run(test())
