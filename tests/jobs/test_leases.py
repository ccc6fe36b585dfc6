"""Workers that may be lost: a job runs again, its result counts once, and late results count for nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jobs.scripted_place import ScriptedPlace
from tests.jobs.test_dispatcher import Queue, play

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import MAX_LOSSES, Job, Request, Status
from loraloom.jobs.notices import Limits
from loraloom.jobs.placement import Needs
from loraloom.jobs.publishing import Places, resume
from loraloom.jobs.store import LeaseOver, Store
from loraloom.jobs.writer import StoreThread

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "finish", "die", "lose", "restart", "cancel", "retry"]), st.integers(0, 99)
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_in_whatever_order_only_the_last_lease_counts(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("leases") / "queue.db")
    names = ["a", "b", "c"]
    leases: list[Job] = []
    results: dict[str, int] = {}
    for name in names:
        store.submit(Request({}), job_id=name)
    for kind, number in steps:
        lease = leases[number % len(leases)] if leases else None
        if kind == "claim":
            leases += [job for job in [store.claim(f"worker-{number}")] if job is not None]
        elif kind == "restart":
            store.recover()
        elif kind == "cancel":
            store.cancel_waiting([names[number % 3]], 1)
        elif kind == "retry":
            if store.get(names[number % 3]).status in (Status.CANCELLED, Status.QUARANTINED):
                store.change(names[number % 3], lambda j: j.retry(0.0))
        elif lease is not None:
            known = store.get(lease.id)
            current = known.status is Status.RUNNING and known.claims == lease.claims
            try:
                if kind == "finish":
                    made = {"lease": lease.claims}
                    store.settle(lease, lambda j, m=made: j.succeed(1.0, m), [], [(f"{lease.id}s", "f")])
                    assert results.setdefault(lease.id, lease.claims) == lease.claims
                elif kind == "die":
                    store.settle(lease, lambda j: j.worker_died(1.0, "it crashed"))
                else:
                    store.settle(lease, lambda j: j.out_of_reach(1.0, "nothing was heard of it"))
                assert current
            except LeaseOver:
                assert not current
    for name in names:
        job = store.get(name)
        assert (job.status is Status.COMPLETED) == (name in results)
        assert job.result == ({"lease": results[name]} if name in results else None)
        assert job.deaths <= 2 and job.losses <= MAX_LOSSES
    assert {job for job, _, _ in store.publications()} == results.keys()
    store.close()


def places_in(folder: Path) -> Places:
    return Places(folder / "staging", folder / "output")


@asynccontextmanager
async def cluster(
    folder: Path, workers: int, **more: Any
) -> AsyncGenerator[tuple[Queue, list[ScriptedPlace]]]:
    store = StoreThread(folder / "queue.db", max_pending=100, max_finished=100)
    log: list[str] = []
    usual: dict[str, Any] = {"log": log.append, "places": places_in(folder)}
    dispatcher = Dispatcher(store, [], **usual | more)
    found, places = Queue(dispatcher), [ScriptedPlace() for _ in range(workers)]
    for number, place in enumerate(places):
        dispatcher.add(f"w{number}", place.start)
    await dispatcher.start()
    try:
        yield found, places
    finally:
        await dispatcher.stop()
        store.close()


def request(base: str = "") -> dict[str, Any]:
    return {"1": {"class_type": "X", "inputs": {"base": base}}}


def needs(asked: Request) -> Needs:
    node: Any = asked.prompt["1"]
    return Needs(frozenset({node["inputs"]["base"]}))


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_job_of_a_lost_machine_runs_elsewhere_and_its_late_result_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 2) as (q, (first, second)):
            job = await q.submit(request())
            await until(lambda: first.jobs or second.jobs)
            lost, other = (first, second) if first.jobs else (second, first)
            assert next(iter(q.dispatcher.running.values())).job.place in ("w0", "w1")
            lost.end("its machine is not heard of any more", lost=True)
            await until(lambda: other.jobs)
            other.complete()
            done = await q.done(job)
            assert (done.status, done.claims, done.deaths, done.losses) == (Status.COMPLETED, 2, 0, 1)
            store = q.dispatcher
            with pytest.raises(LeaseOver):
                await store.call(
                    lambda s: s.settle(Job(job.id, 0.0, Request({}), claims=1), lambda j: j.succeed(1.0, {}))
                )
            assert [n.kind for n in q.notices].count("completed") == 1

    play(test())


def test_a_job_that_takes_down_two_workers_is_put_aside(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 2) as (q, places):
            job = await q.submit(request())
            for _ in range(2):
                await until(lambda: any(p.jobs and p.alive for p in places))
                next(p for p in places if p.jobs and p.alive).end("it crashed")
            done = await q.done(job)
            assert (done.status, done.deaths) == (Status.QUARANTINED, 2)

    play(test())


def test_a_silent_worker_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 1, limits=Limits(silence=0.5)) as (q, (silent,)):
            job = await q.submit(request())
            await q.heard("requeued")
            q.dispatcher.add("other", (other := ScriptedPlace()).start)
            await until(lambda: other.jobs == [job.id])
            other.complete()
            assert (await q.done(job)).status is Status.COMPLETED
            assert not silent.alive

    play(test())


def test_a_worker_that_is_removed_gives_its_job_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 1) as (q, (place,)):
            job = await q.submit(request())
            await until(lambda: place.jobs)
            q.dispatcher.add("other", (other := ScriptedPlace()).start)
            await q.dispatcher.remove("w0")
            assert [*q.dispatcher.lanes] == ["other"]
            await until(lambda: other.jobs == [job.id])

    play(test())


def test_the_job_of_a_worker_that_is_removed_goes_to_one_that_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = Store.prune

    def slow(store: Store) -> None:
        time.sleep(0.2)
        prune(store)

    async def test() -> None:
        async with cluster(tmp_path, 2) as (q, places):
            job = await q.submit(request())
            await until(lambda: any(p.jobs for p in places))
            monkeypatch.setattr(Store, "prune", slow)
            other = next(p for p in places if not p.jobs)
            await q.dispatcher.remove(q.dispatcher.running[job.id].job.place or "")
            await until(lambda: other.jobs == [job.id])
            other.complete()
            assert (await q.done(job)).status is Status.COMPLETED

    play(test())


def test_what_the_only_worker_has_loaded_is_known(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 1, needs=needs) as (q, (place,)):
            await q.submit(request("sdxl"))
            await until(lambda: place.jobs)
            assert q.dispatcher.resident("w0").base == {"sdxl"}

    play(test())


def test_jobs_go_where_their_models_are(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 2, needs=needs) as (q, places):
            for base in ("sdxl", "flux"):
                await q.submit(request(base))
            await until(lambda: all(len(p.jobs) == 1 for p in places))
            begun = {str(q.dispatcher.running[p.jobs[0]].job.request.prompt["1"]): p for p in places}
            for base in ("flux", "sdxl", "sdxl", "flux"):
                await q.submit(request(base))
            for _ in range(2):
                for place in places:
                    count = len(place.jobs)
                    place.complete()
                    await until(lambda p=place, c=count: len(p.jobs) == c + 1)
            for said, place in begun.items():
                jobs = [await q.dispatcher.read(lambda s, i=i: s.get(i)) for i in place.jobs]
                assert {str(j.request.prompt["1"]) for j in jobs} == {said}

    play(test())


def staged(folder: Path, name: str, content: bytes) -> str:
    (folder / "staging").mkdir(exist_ok=True)
    path = folder / "staging" / name
    path.write_bytes(content)
    return str(path)


def finished(*files: str, kind: str = "output") -> dict[str, Any]:
    """files: within the folder of results."""
    parts = [Path(file) for file in files]
    ui = {
        "images": [{"filename": p.name, "subfolder": str(p.parent).strip("."), "type": kind} for p in parts]
    }
    return {"kind": "node_finished", "node": "1", "display": "1", "parent": None, "class_type": "X", "ui": ui,
            "cached": False}  # fmt: skip


def test_files_get_their_names_with_the_result(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 1) as (q, (place,)):
            job = await q.submit(request())
            await until(lambda: place.jobs)
            final = tmp_path / "output/cats/a_00001_.png"
            files = [[staged(tmp_path, "1", b"cat"), str(final)]]
            place.complete(held=[finished(f"cats/{final.name}")], publish=files)
            done = await q.done(job)
            assert final.read_bytes() == b"cat"
            assert done.result is not None and "a_00001_.png" in str(done.result["outputs"])
            assert [*(tmp_path / "staging").iterdir()] == []
            assert [n.kind for n in q.notices if n.event][-2:] == ["node_finished", "completed"]

    play(test())


def test_a_name_that_is_taken_meanwhile_is_left_to_who_has_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 1) as (q, (place,)):
            job = await q.submit(request())
            await until(lambda: place.jobs)
            final = tmp_path / "output/cats/a_00001_.png"
            final.parent.mkdir(parents=True)
            final.write_bytes(b"not ours")
            files = [[staged(tmp_path, "1", b"cat"), str(final)]]
            place.complete(held=[finished(f"cats/{final.name}")], publish=files)
            done = await q.done(job)
            assert final.read_bytes() == b"not ours"
            assert (final.parent / "a_00001_2.png").read_bytes() == b"cat"
            assert done.result is not None and "a_00001_2.png" in str(done.result["outputs"])
            told = next(n for n in q.notices if n.kind == "node_finished")
            assert "a_00001_2.png" in str(told.payload)
            events = await q.dispatcher.read(lambda s: s.events(job.id))
            assert "a_00001_2.png" in str([e.payload for e in events])

    play(test())


def test_a_name_that_is_taken_in_one_folder_is_not_changed_in_another(tmp_path: Path) -> None:
    """Folders whose names end alike, a temporary picture of the same name, and a batch."""

    async def test() -> None:
        async with cluster(tmp_path, 1) as (q, (place,)):
            job = await q.submit(request())
            await until(lambda: place.jobs)
            names = [f"{folder}a_0000{n}_.png" for folder in ("", "cats/", "my cats/cats/") for n in (1, 2)]
            for taken in ("a_00001_.png", "my cats/cats/a_00002_.png"):
                (tmp_path / "output" / taken).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "output" / taken).write_bytes(b"not ours")
            files = [[staged(tmp_path, str(n), name.encode()), str(tmp_path / "output" / name)]
                     for n, name in enumerate(names)]  # fmt: skip
            shown = finished(names[0], kind="temp") | {"node": "2", "display": "2"}
            place.complete(held=[finished(*names), shown], publish=files)
            result: Any = (await q.done(job)).result
            images = result["outputs"]["1"]["images"]
            where = [tmp_path / "output" / found["subfolder"] / found["filename"] for found in images]
            assert [path.read_bytes().decode() for path in where] == names
            assert result["outputs"]["2"]["images"][0]["filename"] == "a_00001_.png"

    play(test())


def test_a_long_name_that_is_taken_is_cut(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, 1) as (q, (place,)):
            job = await q.submit(request())
            await until(lambda: place.jobs)
            name = "é" * 97 + "a.png"
            (tmp_path / "output").mkdir()
            (tmp_path / "output" / name).write_bytes(b"not ours")
            place.complete(
                held=[finished(name)],
                publish=[[staged(tmp_path, "1", b"cat"), str(tmp_path / "output" / name)]],
            )
            result: Any = (await q.done(job)).result
            (image,) = result["outputs"]["1"]["images"]
            assert (tmp_path / "output" / image["filename"]).read_bytes() == b"cat"

    play(test())


@pytest.mark.parametrize("named", [False, True])
def test_a_crash_between_result_and_names_is_made_good(tmp_path: Path, named: bool) -> None:
    store = StoreThread(tmp_path / "queue.db", max_pending=10, max_finished=10)
    final = tmp_path / "output/a.png"
    path = staged(tmp_path, "1", b"cat")
    orphan = Path(staged(tmp_path, "2", b"of a job that never ended"))
    if named:
        final.parent.mkdir()
        os.link(path, final)

    async def test() -> None:
        async def commit(function: Any) -> Any:
            return await asyncio.wrap_future(store.call(function))

        await commit(lambda s: s.submit(Request({}), job_id="a"))
        lease = await commit(lambda s: s.claim())
        await commit(lambda s: s.settle(lease, lambda j: j.succeed(1.0, {}), [], [(path, str(final))]))
        await resume(commit, await commit(lambda s: s.publications()), places_in(tmp_path))
        assert await commit(lambda s: s.publications()) == []

    asyncio.run(test())
    store.close()
    assert final.read_bytes() == b"cat"
    assert not orphan.exists() and not Path(path).exists()
    assert [p.name for p in final.parent.iterdir()] == ["a.png"]
