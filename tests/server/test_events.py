"""The stream of all that happens."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import pytest
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer
from tests.server.test_api import done, submit

from loraloom.jobs.job import Job, Request, Status
from loraloom.jobs.notices import Notice
from loraloom.server.events import KEPT, KEPT_BYTES, EventLog, stream
from loraloom.server.sse import MAX_WAITING, Line

Told = tuple[str, str, Any]


@contextmanager
def listening(server: RunningServer, **query: str) -> Generator[Iterator[Told]]:
    """(id, kind, data) of every event as it comes."""
    with server.http.stream("GET", "/v1/events", params=query) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()

        def events() -> Iterator[Told]:
            number, kind = "", ""
            for line in lines:
                name, _, value = line.partition(": ")
                if name == "id":
                    number = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    yield number, kind, json.loads(value)
                    number = ""

        yield events()


def until(events: Iterator[Told], kind: str, job: str) -> list[Told]:
    found: list[Told] = []
    for event in events:
        found.append(event)
        if event[1] == kind and event[2].get("job", event[2].get("id")) == job:
            return found
    raise AssertionError("the stream has ended")


def test_one_stream_tells_of_all_jobs_and_of_the_queue(server: RunningServer) -> None:
    with listening(server) as events:
        assert next(events)[1] == "queue"
        first = submit(server, prompt("Wait", value=1))["id"]
        second = submit(server, prompt("Fail", value=2))["id"]
        told = until(events, "failed", second)
    kinds = [kind for _, kind, data in told if data.get("job") == first]
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"
    assert {"node_finished", "note", "warning"} <= set(kinds)
    assert {"pending", "running"} <= {data["status"] for _, kind, data in told if kind == "job"}
    numbers = [number for number, kind, _ in told if kind not in ("queue", "progress")]
    assert all(numbers) and numbers == sorted(set(numbers), key=lambda n: int(n.partition("-")[2]))
    assert [data["status"] for _, kind, data in told if kind == "completed"] == ["completed"]


@pytest.mark.parametrize("asked", ["true", "false"])
def test_steps_are_told_with_previews_if_they_are_asked_for(server: RunningServer, asked: str) -> None:
    with listening(server, previews=asked) as events:
        job = submit(server, prompt("Wait", value=1, seconds=60), previews=True)["id"]
        told = (data for _, kind, data in events if kind == "progress" and data["job"] == job)
        if asked == "true":
            assert next(data for data in told if "preview" in data)["max"] == 3000
        else:
            assert not any("preview" in next(told) for _ in range(3))
    assert server.http.post(f"/v1/jobs/{job}/cancel").json() == {"cancelled": True}
    done(server, job)


async def taken(events: AsyncGenerator[str, None], count: int) -> list[Any]:
    found = [await anext(events) for _ in range(count)]
    return [json.loads(text.partition("data: ")[2]) for text in found]


def test_a_stream_has_the_latest_step_of_every_job_and_each_preview_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most steps bring no picture along; one that came before them is still to be shown."""
    monkeypatch.setattr("loraloom.server.events.PAUSE_SECONDS", 0.0)
    jobs = {name: Job(name, 0.0, Request({}), status=Status.RUNNING) for name in "ab"}

    def step(log: EventLog, job: str, value: int, preview: bytes = b"", node: str = "1") -> None:
        said = {"node": node, "display": node, "value": value, "max": 9}
        log.hear(Notice("progress", jobs[job], said, preview=preview))

    class Idle:
        worker_info: ClassVar[dict[str, Any]] = {}
        paused = False

        async def read(self, function: object) -> tuple[int, int]:
            return 0, 2

    async def test() -> None:
        log = EventLog()
        events = stream(log, cast("Any", Idle()), "", previews=True)
        assert (await taken(events, 1))[0]["running"] == 2
        step(log, "a", 1, b"one")
        step(log, "a", 2)
        step(log, "b", 7)
        first, other = await taken(events, 2)
        assert (first["job"], first["value"], base64.b64decode(first["preview"])) == ("a", 2, b"one")
        assert (other["job"], other["value"]) == ("b", 7) and "preview" not in other
        step(log, "a", 3)
        assert "preview" not in (await taken(events, 1))[0], "it was shown"
        step(log, "a", 4, b"two")
        step(log, "a", 1, node="2")
        assert "preview" not in (await taken(events, 1))[0], "it is of another node"
        log.hear(Notice("completed", replace(jobs["a"], status=Status.COMPLETED)))
        assert [*log.steps] == ["b"]

    asyncio.run(test())


def test_a_reader_that_comes_back_gets_what_it_missed(server: RunningServer) -> None:
    with listening(server) as events:
        next(events)
        job = submit(server, prompt(value=3))["id"]
        last = until(events, "started", job)[-1][0]
    done(server, job)
    with listening(server, after=last) as events:
        told = until(events, "completed", job)
    assert "started" not in [kind for _, kind, _ in told]
    assert "node_finished" in [kind for _, kind, _ in told]


def test_a_reader_of_another_time_is_told_to_begin_anew(server: RunningServer) -> None:
    for last in ("00000000-5", "nonsense", "-", "x-99999999999999999999"):
        with listening(server, after=last) as events:
            assert next(events)[1] == "reset"
            assert next(events)[1] == "queue"


def test_what_is_forgotten_is_said_to_be() -> None:
    log = EventLog()
    job = Job("a", 0.0, Request({}))
    for _ in range(KEPT + 10):
        log.hear(Notice("started", job))
    assert log.position(f"{log.epoch}-5") is None
    assert log.position(f"{log.epoch}-{KEPT + 11}") is None
    assert log.position(f"{log.epoch}-{KEPT + 10}") == KEPT + 10
    found = log.since(KEPT + 8)
    assert found is not None and [entry.number for entry in found] == [KEPT + 9, KEPT + 10]


def test_few_large_events_are_kept_and_many_small_ones() -> None:
    log = EventLog()
    job = Job("a", 0.0, Request({}))
    for _ in range(100):
        log.hear(Notice("node_finished", job, {"ui": {"text": ["x" * (KEPT_BYTES // 10)]}}))
    assert 8 <= len(log.entries) <= 10
    assert log.size == sum(len(entry.text) for entry in log.entries) <= KEPT_BYTES
    assert log.position(f"{log.epoch}-100") == 100
    assert log.position(f"{log.epoch}-50") is None
    log.hear(Notice("node_finished", job, {"ui": {"text": ["x" * 2 * KEPT_BYTES]}}))
    assert [entry.number for entry in log.entries] == [101]
    log.hear(Notice("completed", job))
    assert [entry.number for entry in log.entries] == [102]


def test_a_slow_reader_of_a_job_keeps_one_preview() -> None:
    async def test() -> None:
        line = Line()
        for step in range(5000):
            line.put(Notice("progress", None, {"value": step}, preview=b"x" * 1000))
        line.put(Notice("node_finished"))
        for step in range(5000):
            line.put(Notice("progress", None, {"value": step}, preview=b"x" * 1000))
        line.put(Notice("progress", None, {"value": 5000}))  # most steps bring no picture along
        found = [await line.take() for _ in range(3)]
        assert [n.kind for n in found if n is not None] == ["progress", "node_finished", "progress"]
        assert [len(n.preview) for n in found if n is not None] == [0, 0, 1000]
        assert found[-1] is not None and found[-1].payload == {"value": 5000}
        for _ in range(MAX_WAITING + 1):
            line.put(Notice("warning"))
        assert await line.take() is None

    asyncio.run(test())
