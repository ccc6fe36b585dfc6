"""An error has one HTTP status, whichever route lets it through."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from loraloom.errors import InputError, LoraloomError, OutOfMemory, WorkflowError
from loraloom.jobs.job import WrongStatus
from loraloom.jobs.store import JobExists, QueueFull, UnknownJob
from loraloom.server import failures

CASES: list[tuple[LoraloomError, int]] = [
    (UnknownJob("a"), 404),
    (WrongStatus("a"), 409),
    (JobExists("a"), 409),
    (QueueFull("a"), 429),
    (WorkflowError("a"), 400),
    (InputError("a"), 400),
    (OutOfMemory("a"), 500),
]


@pytest.mark.parametrize(("error", "status"), CASES, ids=lambda v: type(v).__name__)
def test_one_status_in_both_interfaces(error: LoraloomError, status: int) -> None:
    async def fail(_request: Request) -> Response:
        raise error

    ours = FastAPI()
    ours.add_exception_handler(LoraloomError, failures.handler("detail"))
    ours.add_route("/", fail)
    comfyui = Starlette(
        routes=[Route("/", fail)], exception_handlers={LoraloomError: failures.handler("error")}
    )
    for app, field in ((ours, "detail"), (comfyui, "error")):
        answer = TestClient(app).get("/")
        assert (answer.status_code, answer.json()) == (status, {field: "a"})
        assert answer.headers.get("retry-after") == ("30" if status == 429 else None)
