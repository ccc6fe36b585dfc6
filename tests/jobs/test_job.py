"""What may happen to a job."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.jobs.job import Job, Request, Status, WrongStatus

WAITING = Job("a", 1, Request({}))


def test_the_ways_a_job_ends() -> None:
    running = WAITING.claim(1.0)
    assert (running.status, running.started, running.claims) == (Status.RUNNING, 1.0, 1)
    assert running.succeed(2.0, {"outputs": {}}).status is Status.COMPLETED
    assert running.fail(2.0, {"message": "no"}).error == {"message": "no"}
    assert running.stop(2.0).status is Status.CANCELLED
    assert WAITING.stop(2.0).finished == 2.0


def test_the_second_death_of_the_worker_puts_the_job_aside() -> None:
    first = WAITING.claim(1.0).worker_died(2.0, "it crashed")
    assert (first.status, first.deaths, first.started) == (Status.PENDING, 1, None)
    second = first.claim(3.0).worker_died(4.0, "memory ran out")
    assert second.status is Status.QUARANTINED
    assert second.error is not None
    assert "memory ran out" in str(second.error["message"])
    again = second.retry(9)
    assert (again.status, again.deaths, again.number, again.error) == (Status.PENDING, 0, 9, None)


def test_the_fifth_loss_of_a_machine_puts_the_job_aside() -> None:
    job = WAITING
    for count in range(1, 5):
        job = job.claim(1.0).out_of_reach(2.0, "its node is gone")
        assert (job.status, job.losses, job.deaths, job.started) == (Status.PENDING, count, 0, None)
    last = job.claim(3.0).out_of_reach(4.0, "its node is gone")
    assert (last.status, last.losses, last.finished) == (Status.QUARANTINED, 5, 4.0)
    assert last.error == {
        "type": "quarantined",
        "message": "workers were lost 5 times while it ran this job, the last time because its node is gone; "
        "it will not be tried again unless you retry it",
    }
    assert last.retry(3).losses == 0


ALLOWED: dict[str, set[Status]] = {
    "claim": {Status.PENDING},
    "move": {Status.PENDING},
    "stop": {Status.PENDING, Status.RUNNING},
    "retry": {Status.FAILED, Status.CANCELLED, Status.QUARANTINED},
    **dict.fromkeys(("succeed", "fail", "die", "lose", "interrupt"), {Status.RUNNING}),
}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("step", ALLOWED)
def test_which_change_each_status_allows(step: str, status: Status) -> None:
    job = Job("a", 1, Request({}), status=status)
    if status in ALLOWED[step]:
        assert STEPS[step](job, 1).id == "a"
    else:
        with pytest.raises(WrongStatus, match=f"job a is {status} and cannot .*; that takes "):
            STEPS[step](job, 1)


def test_a_fresh_job_has_seen_nothing() -> None:
    assert (WAITING.priority, WAITING.created, WAITING.claims, WAITING.deaths, WAITING.losses) == (
        0,
        0.0,
        0,
        0,
        0,
    )
    assert (WAITING.started, WAITING.finished, WAITING.result, WAITING.error, WAITING.place) == (None,) * 5


@pytest.mark.parametrize("targets", [None, (), ("1", "9")])
def test_a_request_comes_back_from_json_as_it_was(targets: tuple[str, ...] | None) -> None:
    request = Request({"1": {}}, {"a": 1}, targets, "me", "http://a/", "continue_independent")
    assert Request.from_json(request.to_json()) == request
    older = {k: v for k, v in request.to_json().items() if k != "node_failure_policy"}
    assert Request.from_json(older).policy == "fail_fast"


def test_restarts_of_the_server_do_not_count_against_a_job() -> None:
    job = WAITING
    for _ in range(20):
        job = job.claim(1.0).interrupted()
    assert (job.status, job.deaths, job.claims) == (Status.PENDING, 0, 20)


def test_a_finished_job_keeps_its_result() -> None:
    done = WAITING.claim(1.0).succeed(2.0, {})
    for change in (
        lambda: done.stop(3.0),
        lambda: done.claim(3.0),
        lambda: done.retry(1),
        lambda: done.move(1, 1),
    ):
        with pytest.raises(WrongStatus, match="job a is completed and cannot"):
            change()


STEPS: dict[str, Callable[[Job, int], Job]] = {
    "claim": lambda job, now: job.claim(now),
    "succeed": lambda job, now: job.succeed(now, {}),
    "fail": lambda job, now: job.fail(now, {"type": "x", "message": "x"}),
    "stop": lambda job, now: job.stop(now),
    "die": lambda job, now: job.worker_died(now, "x"),
    "lose": lambda job, now: job.out_of_reach(now, "x"),
    "interrupt": lambda job, now: job.interrupted(),
    "retry": lambda job, now: job.retry(now),
    "move": lambda job, now: job.move(now, 1),
}


@given(st.lists(st.sampled_from([*STEPS]), max_size=30))
def test_any_sequence_of_changes_leaves_a_consistent_job(steps: list[str]) -> None:
    job = WAITING
    for now, step in enumerate(steps, 1):
        try:
            job = STEPS[step](job, now)
        except WrongStatus:
            continue
        assert (job.finished is not None) == job.status.final
        assert (job.started is None) or job.status is not Status.PENDING
        assert job.deaths < 2 or job.status is Status.QUARANTINED
