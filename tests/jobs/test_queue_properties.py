"""The order of the queue, who gets a job, and what is kept of one, whatever is asked in whatever order."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.jobs.job import Job, Request, Status
from loraloom.jobs.live import LASTING, LiveJob
from loraloom.jobs.placement import PATIENCE, Needs, Placement, Seat, Waiting
from loraloom.jobs.seating import Seating
from loraloom.jobs.store import Store

NEEDS = st.builds(
    Needs,
    st.sampled_from([frozenset[str](), frozenset({"flux"}), frozenset({"sdxl"}), frozenset({"flux", "vae"})]),
    st.sampled_from([(), ("a",), ("a", "b")]),
)
SEATS = st.lists(NEEDS, max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), NEEDS), max_size=12), SEATS)
def test_every_seat_is_taken_once_and_nobody_overtakes_a_higher_priority(
    asked: list[tuple[int, Needs]], resident: list[Needs]
) -> None:
    waiting = [Waiting(str(i), priority, needs) for i, (priority, needs) in enumerate(asked)]
    seats = [Seat(f"w{i}", needs) for i, needs in enumerate(resident)]
    pairs = Placement().choose(waiting, seats)
    jobs, taken = [job for job, _ in pairs], [seat for _, seat in pairs]
    assert len(set(jobs)) == len(set(taken)) == len(pairs) == min(len(waiting), len(seats))
    priority = {one.id: one.priority for one in waiting}
    left = [priority[one.id] for one in waiting if one.id not in jobs]
    assert not left or all(priority[job] >= max(left) for job in jobs)


@settings(max_examples=30)
@given(st.lists(st.lists(NEEDS, max_size=3), min_size=1, max_size=60), SEATS.filter(bool))
def test_nobody_is_overtaken_more_often_than_patience_allows(
    arriving: list[list[Needs]], resident: list[Needs]
) -> None:
    placement, waiting, overtaken = Placement(), list[Waiting](), dict[str, int]()
    for turn, new in enumerate(arriving):
        waiting += [Waiting(f"{turn}-{i}", 0, needs) for i, needs in enumerate(new)]
        seat = Seat("w", resident[turn % len(resident)])
        chosen = {job for job, _ in placement.choose(waiting, [seat])}
        for place, one in enumerate(waiting):
            if one.id not in chosen and any(other.id in chosen for other in waiting[place:]):
                overtaken[one.id] = overtaken.get(one.id, 0) + 1
        waiting = [one for one in waiting if one.id not in chosen]
    assert max(overtaken.values(), default=0) <= PATIENCE


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "front", "claim", "move", "cancel", "restart"]),
        st.integers(0, 2),
        st.integers(0, 99),
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(steps=STEPS)
def test_jobs_wait_and_run_by_priority_then_number(
    steps: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("order") / "queue.db"
    store, numbers = Store(path), dict[str, tuple[int, float]]()

    def order() -> list[str]:
        return sorted(numbers, key=lambda job: (-numbers[job][0], numbers[job][1]))

    for count, (step, priority, pick) in enumerate(steps):
        named = order()[pick % len(numbers)] if numbers else None
        if step in ("submit", "front"):
            job = store.submit(Request({}), job_id=str(count), priority=priority, front=step == "front")
            assert all(job.number != number for _, number in numbers.values())
            numbers[job.id] = (priority, job.number)
            if step == "front":
                assert [j for j in order() if numbers[j][0] == priority][0] == job.id
        elif step == "claim":
            claimed, first = store.claim(), order()[:1]
            assert ([] if claimed is None else [claimed.id]) == first
            numbers.pop(claimed.id if claimed is not None else "", None)
        elif step == "restart":
            store.close()
            store = Store(path)
            numbers |= {job.id: (job.priority, job.number) for job in store.recover()}
        elif named is not None and step == "move":
            number = pick + count / 1000 + 0.0001
            store.change(named, lambda j, n=number, p=priority: j.move(n, p))
            numbers[named] = (priority, number)
        elif named is not None:
            store.cancel_waiting([named], 1)
            del numbers[named]
        assert [job.id for job in store.waiting()] == [i for i, _ in store.waiting_ids(-1)] == order()
    store.close()


@settings(max_examples=25)
@given(
    asked=st.lists(st.tuples(st.integers(0, 1), st.sampled_from("xyz")), max_size=14),
    rows=st.integers(1, 4),
    alone=st.booleans(),
)
def test_a_worker_gets_jobs_that_are_alike_and_every_job_once(
    asked: list[tuple[int, str]], rows: int, alone: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("batches") / "queue.db")
    for priority, kind in asked:
        store.submit(Request({"kind": kind}), priority=priority)

    def kind_of(request: Request) -> str | None:
        return None if request.prompt["kind"] == "z" else str(request.prompt["kind"])

    seating, claimed = Seating(None, kind_of), list[str]()
    idle = {"a": rows} if alone else {"a": rows, "b": 1}
    for _ in range(len(asked) + 1):
        share = -(-store.count(Status.PENDING) // len(idle))
        found = seating.claim(store, idle, takers=len(idle), alone=alone)
        jobs = sorted(found, key=lambda job: job.place or "")
        for place, given_ in groupby(jobs, key=lambda job: job.place or ""):
            of = [*given_]
            assert len(of) <= min(idle[place], share) and len({job.priority for job in of}) == 1
            assert len(of) == 1 or len({kind_of(job.request) for job in of} | {None}) == 2
        claimed += [job.id for job in jobs]
    assert len(claimed) == len(set(claimed)) == len(asked)
    store.close()


NODES = st.sampled_from(["1", "2", "2:1"])
MESSAGES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"kind": st.just("cached"), "nodes": st.lists(NODES, max_size=2)}),
    st.fixed_dictionaries({"kind": st.just("node_started"), "node": NODES, "display": NODES}),
    st.fixed_dictionaries({
        "kind": st.just("progress"), "node": NODES, "display": NODES, "value": st.integers(0, 9),
        "max": st.integers(0, 9),
    }),
    st.fixed_dictionaries({
        "kind": st.just("node_finished"), "node": NODES, "display": NODES, "parent": st.none(),
        "ui": st.dictionaries(st.just("images"), st.lists(st.text(max_size=3), max_size=2), max_size=1),
    }),
    st.fixed_dictionaries({"kind": st.just("warning"), "node": NODES, "message": st.text(max_size=3)}),
    st.fixed_dictionaries({
        "kind": st.just("note"), "node": NODES, "note": st.sampled_from(["lora", "text"]),
        "payload": st.just({"a": 1}),
    }),
    st.fixed_dictionaries({
        "kind": st.just("node_failed"), "node": NODES, "display": NODES, "message": st.just("no"),
        "blocked": st.lists(NODES, max_size=2),
    }),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(MESSAGES, max_size=20), st.integers(1, 3))
def test_what_a_worker_said_adds_up_to_a_result(told: list[dict[str, Any]], claims: int) -> None:
    asked = Request({}, policy="continue_independent")
    live = LiveJob(Job("a", 1.0, asked, status=Status.RUNNING, claims=claims))
    seen = [event for message in told if (event := live.see(message)) is not None]
    last = live.event("completed", {})
    assert [event.kind for event in seen] == [m["kind"] for m in told if m["kind"] in LASTING]
    numbers = [event.sequence for event in (*seen, last)]
    assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    assert numbers[0] > LiveJob(Job("a", 1.0, asked, claims=claims - 1)).event("x", {}).sequence
    result: Any = json.loads(json.dumps(live.result()))
    shown = {m["node"] for m in told if m["kind"] == "node_finished" and m["ui"]}
    assert set(result["outputs"]) == set(result["meta"]) == shown
    assert len(result["receipts"]) == sum(m["kind"] == "note" and m["note"] == "lora" for m in told)
    assert len(live.errors) == sum(m["kind"] == "node_failed" for m in told)
    assert all(state["node_id"] == node for node, state in live.states.items())
