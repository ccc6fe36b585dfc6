"""Jobs that are alike run together on other machines as on this one, each with a life of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cluster.picture_runner import NODES, prompt
from tests.cluster.relayed import Relayed
from tests.jobs.test_dispatcher import Queue, importable_runner
from tests.server.in_folder import model_folders

from loraloom.cluster.digests import Digests
from loraloom.cluster.shared_files import Offer
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Request, Status
from loraloom.jobs.notices import Notice
from loraloom.jobs.publishing import Places
from loraloom.jobs.writer import StoreThread

__all__ = ["importable_runner"]

SCHEMAS = {name: node.schema for name, node in NODES.items()}
HAT: dict[str, Any] = {"2": {"class_type": "ReadFile", "inputs": {"lora_name": "hat.safetensors"}}}


class Played(Queue):
    """A queue whose only worker is on another machine."""

    def __init__(self, dispatcher: Dispatcher, node: Relayed) -> None:
        super().__init__(dispatcher)
        self.node = node

    async def ended(self, *graphs: dict[str, Any]) -> list[Any]:
        """Jobs of these graphs that waited together, once they have ended."""
        jobs = [await self.submit(graph) for graph in graphs]
        await self.dispatcher.pause(False)
        return [await self.done(job) for job in jobs]

    def told(self, job_id: str) -> list[Notice]:
        return [n for n in self.notices if n.job is not None and n.job.id == job_id and n.kind != "queue"]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    @asynccontextmanager
    async def queue(rows: int = 8) -> AsyncGenerator[Played]:
        store = StoreThread(tmp_path / "queue.db", max_pending=100, max_finished=100)
        dispatcher = Dispatcher(
            store, [], paused=True, likeness=lambda asked: str(sorted(asked.prompt)), rows=rows,
            places=Places(tmp_path / "staging", tmp_path / "output"), log=lambda text: None,
        )  # fmt: skip
        offer = Offer(model_folders(tmp_path), lambda: SCHEMAS, Digests(tmp_path / "digests.json"))
        found = Played(dispatcher, Relayed(tmp_path, monkeypatch, offer))
        dispatcher.add("blue/0", found.node.start)
        await dispatcher.start()
        try:
            yield found
        finally:
            await dispatcher.stop()
            await found.node.stop()
            store.close()
            assert [*(tmp_path / "staging").iterdir()] == [], "nothing is left under a passing name"

    return queue


def colours(folder: Path, name: str = "job") -> list[int]:
    """The values of the pictures, in the order of their names."""
    found: list[int] = []
    for path in sorted((folder / "output").glob(f"{name}_*.png")):
        with Image.open(path) as picture:
            pixel: Any = picture.getpixel((0, 0))
            found.append(pixel[0])
    return found


def slept_with(job: Any) -> int:
    return int(job.result["outputs"]["1"]["text"][0])


def test_waiting_jobs_that_are_alike_run_together_elsewhere(tmp_path: Path, played: Any) -> None:
    async def test() -> None:
        async with played() as q:
            done = await q.ended(*(prompt(n, 0.2) for n in range(3)))
            assert [(job.status, job.claims) for job in done] == [(Status.COMPLETED, 1)] * 3
            assert [slept_with(job) for job in done] == [3, 3, 3]
            assert [len(order["jobs"]) for order in q.node.orders] == [3]
            for job, value in zip(done, range(3), strict=True):
                told = q.told(job.id)
                steps = [(n.payload["value"], n.payload["max"]) for n in told if n.kind == "progress"]
                assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
                assert [n.kind for n in told if n.kind in ("started", "completed")] == [
                    "started",
                    "completed",
                ]
                (picture, shown) = job.result["outputs"]["1"]["images"]
                with Image.open(tmp_path / "output" / picture["filename"]) as opened:
                    assert opened.getpixel((0, 0)) == (value, 0, 0), "each has its own"
                assert (tmp_path / "temp" / shown["filename"]).exists()
            assert sorted(colours(tmp_path)) == [0, 1, 2]

    asyncio.run(test())


def test_a_bad_row_fails_alone_and_a_cancelled_one_leaves_the_others(tmp_path: Path, played: Any) -> None:
    async def test() -> None:
        async with played() as q:
            graphs = [prompt(1, 1.0), prompt(2, 1.0, fate="fail"), prompt(3, 30.0), prompt(4, 1.0)]
            jobs = [await q.submit(graph) for graph in graphs]
            await q.dispatcher.pause(False)
            await q.heard("progress")
            assert {*q.dispatcher.running} == {job.id for job in jobs}
            assert await q.dispatcher.cancel(jobs[2].id)
            done = [await q.done(job) for job in jobs]
            wanted = [Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.COMPLETED]
            assert [(job.status, job.deaths) for job in done] == [(status, 0) for status in wanted]
            assert done[1].error["message"].endswith("it was to fail")
            assert sorted(colours(tmp_path)) == [1, 4]
            assert len(q.node.workers) == 1, "the worker lives on"

    asyncio.run(test())


def test_after_a_crash_each_job_runs_by_itself_and_counts_it(tmp_path: Path, played: Any) -> None:
    async def test() -> None:
        async with played() as q:
            good, bad, other = await q.ended(prompt(1, 0.5), prompt(2, 0.2, fate="crash"), prompt(3, 0.5))
            assert (bad.status, bad.deaths) == (Status.QUARANTINED, 2)
            for job in (good, other):
                assert (job.status, job.claims, job.deaths) == (Status.COMPLETED, 2, 1)
                assert slept_with(job) == 1
            assert sorted(colours(tmp_path)) == [1, 3]

    asyncio.run(test())


def test_jobs_of_a_lost_machine_run_by_themselves_and_no_picture_is_there_twice(
    tmp_path: Path, played: Any
) -> None:
    async def test() -> None:
        async with played() as q:
            jobs = [await q.submit(prompt(1, 0.1)), await q.submit(prompt(2, 3.0))]
            await q.dispatcher.pause(False)
            await q.done(jobs[0])
            q.node.lose(q.node.workers[0])
            first, second = [await q.done(job) for job in jobs]
            assert (first.claims, first.losses) == (1, 0)
            assert (second.status, second.claims, second.losses) == (Status.COMPLETED, 2, 1)
            assert sorted(colours(tmp_path)) == [1, 2]

    asyncio.run(test())


def test_what_cannot_have_its_files_fails_alone(tmp_path: Path, played: Any) -> None:
    """One is cancelled while they come, one names a file that the head cannot read; the rest run together."""
    loras = tmp_path / "models/loras"
    loras.mkdir(parents=True)
    (loras / "hat.safetensors").write_bytes(b"a hat")

    async def test() -> None:
        async with played() as q:
            q.node.source.go.clear()
            graphs = [HAT | prompt(n, 0.5) for n in range(4)]
            graphs[3] = {**graphs[3], "2": {**HAT["2"], "inputs": {"lora_name": "cap.safetensors"}}}
            jobs = [await q.submit(graph) for graph in graphs]
            (loras / "cap.safetensors").write_bytes(b"a cap")
            await q.dispatcher.pause(False)
            await q.node.source.asked.wait()
            (loras / "cap.safetensors").unlink()  # before it is fetched
            assert await q.dispatcher.cancel(jobs[1].id)
            q.node.source.go.set()
            done = [await q.done(job) for job in jobs]
            wanted = [Status.COMPLETED, Status.CANCELLED, Status.COMPLETED, Status.FAILED]
            assert [job.status for job in done] == wanted
            assert "cap.safetensors" in done[3].error["message"]
            assert [slept_with(done[0]), slept_with(done[2])] == [2, 2]
            assert [job.deaths for job in done] == [0] * 4

    asyncio.run(test())


def test_one_row_is_one_job_after_the_other_elsewhere_too(tmp_path: Path, played: Any) -> None:
    async def test() -> None:
        async with played(rows=1) as q:
            done = await q.ended(prompt(1), prompt(2))
            assert [slept_with(job) for job in done] == [1, 1]
            assert [order["order"] for order in q.node.orders] == ["run", "run"]

    asyncio.run(test())


def test_the_request_of_a_row_reaches_the_node_whole(tmp_path: Path, played: Any) -> None:
    async def test() -> None:
        async with played() as q:
            asked = [Request(prompt(n), {"client_id": str(n)}, webhook="http://127.0.0.1/") for n in range(2)]
            jobs = [await q.dispatcher.submit(request) for request in asked]
            await q.dispatcher.pause(False)
            for job in jobs:
                await q.done(job)
            (order,) = q.node.orders
            assert [Request.from_json(job["request"]) for job in order["jobs"]] == asked

    asyncio.run(test())
