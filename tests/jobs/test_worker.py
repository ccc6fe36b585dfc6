"""The worker's process by itself: what it answers to orders good and bad, and that it ends with its input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest
from tests.jobs.tiny_runner import prompt

from loraloom.jobs import frames
from loraloom.jobs.job import Request
from loraloom.jobs.messages import read_problem

ROOT = Path(__file__).parents[2]
_LAST = ("completed", "failed", "cancelled")


class Child:
    """A worker's process, without the server."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        command = [sys.executable, "-u", "-m", "loraloom.jobs.worker", "tests.jobs.tiny_runner:make"]
        self.errors = folder / "errors.txt"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        self.input = cast("IO[bytes]", self.process.stdin)
        self.output = cast("IO[bytes]", self.process.stdout)

    def order(self, order: str, **more: Any) -> None:
        self.input.write(frames.encode({"order": order, **more}))
        self.input.flush()

    def said(self) -> dict[str, Any]:
        """What it says next, but for signs of life."""
        while (frame := frames.read(self.output)) is not None:
            if frame[0]["kind"] != "alive":
                return frame[0]
        raise EOFError("the worker has ended")

    def until_ended(self, count: int = 1) -> list[dict[str, Any]]:
        """All that it says until so many jobs have ended."""
        told: list[dict[str, Any]] = []
        while sum(message["kind"] in _LAST for message in told) < count:
            told.append(self.said())
        return told

    def run(self, graph: dict[str, Any], job: str = "a", **more: Any) -> list[dict[str, Any]]:
        self.order("run", **job_of(graph, job, **more))
        return self.until_ended()

    def end(self) -> int:
        self.input.close()
        return self.process.wait(60)


def job_of(graph: dict[str, Any], job: str = "a", **more: Any) -> dict[str, Any]:
    return {"job": job, "request": Request(graph, **more).to_json(), "previews": ""}


@contextmanager
def child(folder: Path) -> Generator[Child]:
    found = Child(folder)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        found.input.close()
        found.output.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("worker")
    with child(folder) as found:
        found.order("settings", settings={"output": str(folder / "output")})
        ready = found.said()
        assert (ready["kind"], ready["worker"]["devices"], ready["declared"]) == ("ready", [], None)
        yield found
        assert found.end() == 0


def test_a_job_is_told_from_its_start_to_its_end(worker: Child) -> None:
    told = worker.run(prompt("Wait", seconds=0.04))
    assert {message["job"] for message in told} == {"a"}
    kinds = [message["kind"] for message in told]
    assert (kinds[0], kinds[-1]) == ("run_started", "completed")
    assert [m["node"] for m in told if m["kind"] == "node_finished"] == ["1", "2", "9"]
    assert [m["value"] for m in told if m["kind"] == "progress"] == [1, 2]
    assert next(m for m in told if m["kind"] == "warning")["message"] == "slow"


def test_a_failure_names_its_node_and_the_next_job_runs(worker: Child) -> None:
    told = worker.run(prompt("Fail"))
    assert [m["kind"] for m in told[-2:]] == ["node_failed", "failed"]
    error = told[-1]["error"]
    assert (error["node"], error["type"], error["exception_message"]) == ("2", "RuntimeError", "cannot use 7")
    assert error["traceback"] and told[-1]["partial"] is None
    assert worker.run(prompt())[-1]["kind"] == "completed"


def test_what_did_not_need_the_failed_node_is_told_with_the_end(worker: Child) -> None:
    graph = {**prompt("Fail"), "5": {"class_type": "Even", "inputs": {"value": 4}}}
    told = worker.run(graph, policy="continue_independent")
    assert told[-1]["kind"] == "completed"
    partial = told[-1]["partial"]
    assert (partial["failed"], partial["blocked_outputs"], partial["outputs"]) == (["2"], ["9"], ["5"])


@pytest.mark.parametrize("request_", [{}, {"prompt": 3}, None, "x"])
def test_an_order_that_cannot_be_read_fails_its_job_alone(worker: Child, request_: Any) -> None:
    worker.order("run", job="bad", request=request_)
    (told,) = worker.until_ended()
    assert (told["kind"], told["job"]) == ("failed", "bad") and told["error"]["type"]
    assert worker.run(prompt())[-1]["kind"] == "completed"


def test_jobs_that_run_together_end_each_by_itself(worker: Child) -> None:
    jobs = [job_of(prompt("Meet"), "a"), job_of(prompt("Fail"), "b"), job_of(prompt("Meet"), "c")]
    worker.order("run_together", rows=2, jobs=jobs)
    ends = {m["job"]: m["kind"] for m in worker.until_ended(3) if m["kind"] in _LAST}
    assert ends == {"a": "completed", "b": "failed", "c": "completed"}


def test_a_job_is_cancelled_and_one_that_is_not_there_is_not(worker: Child) -> None:
    worker.order("run", **job_of(prompt("Wait", seconds=60), "long"))
    while worker.said()["kind"] != "progress":
        pass
    worker.order("cancel", job="another")
    worker.order("cancel", job="long")
    told = worker.until_ended()
    assert (told[-1]["kind"], told[-1]["job"], told[-1]["node"]) == ("cancelled", "long", "2")
    assert told[-1]["executed"] == ["1"]


def test_a_question_is_answered_while_a_job_runs(worker: Child) -> None:
    def asked(graph: Any) -> list[dict[str, Any]]:
        request = {**Request({}).to_json(), "prompt": graph}
        worker.order("ask", to="me", request=request)
        while (said := worker.said())["kind"] != "answer":
            pass
        assert said["to"] == "me"
        return said["answer"]

    worker.order("run", **job_of(prompt("Wait", seconds=60), "long"))
    (problem,) = asked({"1": {"class_type": "Even", "inputs": {"value": 3}}})
    assert read_problem(problem).node_id == "1" and "3 is odd" in problem["details"]
    assert asked({"1": {"class_type": "Even", "inputs": {"value": 4}}}) == []
    assert asked(3) == []
    assert "a check of nodes failed" in worker.errors.read_text()
    worker.order("cancel", job="long")
    assert worker.until_ended()[-1]["kind"] == "cancelled"


def test_results_are_let_go_between_jobs(worker: Child) -> None:
    worker.order("free", models=True, results=True)
    assert worker.run(prompt())[-1]["kind"] == "completed"


def test_it_ends_with_its_input_whatever_it_does(tmp_path: Path) -> None:
    with child(tmp_path) as alone:
        alone.order("settings", settings={"output": str(tmp_path / "output")})
        alone.said()
        alone.order("run", **job_of(prompt("Hang")))
        while alone.said()["kind"] != "node_started":
            pass
        assert alone.end() == 0
    with child(tmp_path) as never_told:
        assert never_told.end() == 0


def test_it_ends_when_nobody_hears_it(tmp_path: Path) -> None:
    with child(tmp_path) as deaf:
        deaf.order("settings", settings={"output": str(tmp_path / "output")})
        deaf.said()
        deaf.output.close()
        deaf.order("run", **job_of(prompt("Wait", seconds=60)))
        assert deaf.process.wait(60) == 0
