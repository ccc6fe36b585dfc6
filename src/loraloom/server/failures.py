"""Errors as HTTP answers: one table for ComfyUI's routes and for /v1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

from loraloom.errors import FileWriteError, InputError, LoraloomError, MissingModelsError, PathTaken
from loraloom.jobs.job import WrongStatus
from loraloom.jobs.store import JobExists, QueueFull, UnknownJob
from loraloom.workflow.graph import JSON

# The first row that an error is an instance of counts.
_STATUSES: tuple[tuple[type[LoraloomError], int], ...] = (
    (UnknownJob, 404),
    (WrongStatus, 409),
    (JobExists, 409),
    (QueueFull, 429),
    (PathTaken, 409),
    (FileWriteError, 500),
    (InputError, 400),
    (MissingModelsError, 400),
    (LoraloomError, 500),
)
_RETRY_AFTER_SECONDS = 30


def status_of(error: LoraloomError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


def answer(error: LoraloomError, body: Mapping[str, JSON]) -> JSONResponse:
    """The answer to a request that failed, with the error's status."""
    status = status_of(error)
    return JSONResponse(
        dict(body), status, {"Retry-After": str(_RETRY_AFTER_SECONDS)} if status == 429 else None
    )


def handler(field: str) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    """What answers for a LoraloomError that a route lets through: an object with its message as `field`."""

    async def failed(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, LoraloomError):
            raise error
        return answer(error, {field: str(error)})

    return failed
