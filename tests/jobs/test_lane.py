"""Workers that begin badly, talk nonsense or are too late, and what is asked of the queue meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.scripted_place import ScriptedPlace
from tests.jobs.test_dispatcher import Queue, play
from tests.jobs.test_leases import cluster, request, until

from loraloom.jobs.job import Job, Request, Status, WrongStatus
from loraloom.jobs.notices import Limits
from loraloom.jobs.place import Maker
from loraloom.jobs.store import UnknownJob


def in_turn(*places: ScriptedPlace | OSError) -> Maker:
    """Starts these workers one after the other, whenever the one before has ended; the last one again."""
    left = chain(places, repeat(places[-1]))

    async def start() -> ScriptedPlace:
        place = next(left)
        if isinstance(place, OSError):
            raise place
        return place

    return start


@asynccontextmanager
async def queue(folder: Path, *places: ScriptedPlace | OSError, **more: Any) -> AsyncGenerator[Queue]:
    """Its only worker is each of these in turn."""
    async with cluster(folder, 0, **more) as (q, _):
        q.dispatcher.add("w", in_turn(*places))
        yield q


async def begun(q: Queue, place: ScriptedPlace, **more: Any) -> Job:
    """A job that a worker has just been given."""
    job = await q.dispatcher.submit(Request(request(), **more))
    await until(lambda: place.jobs == [job.id])
    return job


def ended() -> ScriptedPlace:
    place = ScriptedPlace(None)
    place.end("it crashed (signal 11, SIGSEGV)")
    return place


def garbled() -> ScriptedPlace:
    place = ScriptedPlace(None)
    place.garble()
    return place


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ScriptedPlace({"kind": "hello"}), "its first message is 'hello', expected 'ready'"),
        (lambda: ScriptedPlace(None), "it did not say that it was ready within 0.2 s"),
        (garbled, "it sent something that cannot be read"),
        (ended, "it crashed (signal 11, SIGSEGV)"),
        (lambda: OSError("too many open files"), "too many open files"),
    ],
)
def test_a_worker_that_begins_badly_is_told_of_and_followed_by_another(
    tmp_path: Path, make: Callable[[], ScriptedPlace | OSError], said: str
) -> None:
    async def test() -> None:
        log: list[str] = []
        bad, good = make(), ScriptedPlace()
        async with queue(tmp_path, bad, good, limits=Limits(start=0.2), log=log.append) as q:
            job = await q.submit(request())
            await until(lambda: "error" in q.dispatcher.worker_info)
            error = q.dispatcher.worker_info["error"]
            assert str(error).startswith("the worker could not start: ") and said in str(error)
            assert f"{error}\n" in log
            await until(lambda: good.jobs == [job.id])
            good.complete()
            assert (await q.done(job)).deaths == 0
            assert isinstance(bad, OSError) or not bad.alive
            assert "error" not in q.dispatcher.worker_info

    play(test())


@pytest.mark.parametrize(
    "nonsense",
    [
        {"what": "no kind"},
        {"kind": "progress", "node": "1"},
        {"kind": "node_finished", "node": "1", "display": "1", "ui": 3},
        {"kind": "cached", "nodes": 3},
        {"kind": "failed"},
        None,
    ],
)
def test_a_worker_that_talks_nonsense_is_ended_and_its_job_runs_again(
    tmp_path: Path, nonsense: dict[str, Any] | None
) -> None:
    async def test() -> None:
        mad, good = ScriptedPlace(), ScriptedPlace()
        async with queue(tmp_path, mad, good) as q:
            job = await begun(q, mad)
            mad.say({"kind": "progress", "job": "one that it does not have"})
            if nonsense is None:
                mad.garble()
            else:
                mad.say({"job": job.id, **nonsense})
            await until(lambda: good.jobs == [job.id])
            good.complete()
            done = await q.done(job)
            assert (done.status, done.claims, done.deaths) == (Status.COMPLETED, 2, 1)
            assert not mad.alive and "cannot be read" in _reasons(q)

    play(test())


def test_a_worker_that_never_begins_is_told_of_when_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of another version is tried again for ever, with the same words."""
    monkeypatch.setattr("loraloom.jobs.keeper._LONGEST_PAUSE", 0.0)
    old, older = OSError("this node has Loraloom 0.9"), OSError("this node has Loraloom 0.8")

    async def test() -> None:
        log: list[str] = []
        good = ScriptedPlace()
        async with queue(tmp_path, old, old, old, older, old, good, old, log=log.append) as q:
            await begun(q, good)
            good.end("it ended")
            await until(lambda: len(log) >= 4)
            told = ["0.9", "0.8", "0.9", "0.9"]
            assert log == [f"the worker could not start: this node has Loraloom {text}\n" for text in told]

    play(test())


def _reasons(q: Queue) -> str:
    return " ".join(str(n.payload.get("reason")) for n in q.notices if n.kind == "requeued")


def test_what_comes_of_a_lease_that_is_over_is_thrown_away(tmp_path: Path) -> None:
    async def test() -> None:
        late, good = ScriptedPlace(), ScriptedPlace()
        async with queue(tmp_path, late, good) as q:
            job = await begun(q, late)
            await q.dispatcher.call(lambda s: s.recover())
            late.complete()
            await until(lambda: good.jobs == [job.id])
            assert not late.alive and not any(n.kind == "completed" for n in q.notices)
            good.complete()
            assert (await q.done(job)).claims == 2

    play(test())


def test_a_worker_is_drained_and_filled_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, place := ScriptedPlace()) as q:
            await q.heard("worker")
            q.dispatcher.drain("w", True)
            job = await q.submit(request())
            for _ in range(3):
                assert (await q.dispatcher.read(lambda s: s.get(job.id))).status is Status.PENDING
            q.dispatcher.drain("w", False)
            await until(lambda: place.jobs == [job.id])

    play(test())


def test_failures_that_a_job_outlives_are_kept_with_its_result(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, place := ScriptedPlace()) as q:
            job = await begun(q, place, policy="continue_independent")
            place.say({"kind": "cached", "job": job.id, "nodes": ["1"]})
            for node, blocked in (("2", ["8", "9"]), ("3", [])):
                failed = {"node": node, "display": node, "message": f"node {node}: no", "blocked": blocked}
                place.say({"kind": "node_failed", "job": job.id, **failed})
            await until(lambda: sum(n.kind == "node_failed" for n in q.notices) == 2)
            states = q.dispatcher.running[job.id].states
            assert {node: state["state"] for node, state in states.items()} == {
                "1": "finished", "2": "error", "3": "error", "8": "blocked", "9": "blocked",
            }  # fmt: skip
            place.complete(partial={"failed": ["2", "3"]})
            result: Any = (await q.done(job)).result
            assert [error["node"] for error in result["errors"]] == ["2", "3"]
            assert result["cached"] == ["1"] and result["partial"] == {"failed": ["2", "3"]}
            assert result["warnings"] == [
                "node 2: no; so that 8, 9 did not run", "node 3: no; no other node needed it",
            ]  # fmt: skip

    play(test())


def test_a_waiting_job_is_moved_and_a_running_one_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with queue(tmp_path, place := ScriptedPlace()) as q:
            running = await begun(q, place)
            first, second = [await q.submit(request()) for _ in range(2)]
            await q.dispatcher.move(second.id, first.number - 0.5, 0)
            place.complete()
            await until(lambda: len(place.jobs) == 2)
            assert place.jobs == [running.id, second.id]
            with pytest.raises(WrongStatus):
                await q.dispatcher.move(second.id, 0.0, 0)
            with pytest.raises(UnknownJob):
                await q.dispatcher.cancel("nobody")
            await q.dispatcher.let_go(models=True, results=False)
            assert place.orders[-1] == {"order": "free", "models": True, "results": False}
            with pytest.raises(sqlite3.OperationalError, match="no such column"):
                await q.dispatcher.read(lambda s: s.sizes("nonsense = 1"))

    play(test())


def test_a_queue_without_workers_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 0) as (q, _):
            assert (q.dispatcher.worker_info, q.dispatcher.declared) == ({}, None)
            assert not await q.dispatcher.settled(0.1) and not await q.dispatcher.interrupt()
            with pytest.raises(TimeoutError, match="no worker"):
                await q.dispatcher.check(Request({}), 0.1)
            q.dispatcher.add("w", in_turn(ScriptedPlace(None)))
            with pytest.raises(TimeoutError, match="no worker"):
                await q.dispatcher.check(Request({}), 0.1)

    play(test())
