"""Errors as HTTP answers: one table for ComfyUI's routes and for /v1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from loraloom.errors import DiskFull, FileWriteError, InputError, LoraloomError, MissingModelsError, PathTaken
from loraloom.jobs.database import QueueUnavailable
from loraloom.jobs.job import WrongStatus
from loraloom.jobs.store import JobExists, QueueFull, UnknownJob
from loraloom.server.answers import Answer
from loraloom.workflow.graph import JSON

# The first row that an error is an instance of counts.
_STATUSES: tuple[tuple[type[LoraloomError], int], ...] = (
    (UnknownJob, 404),
    (WrongStatus, 409),
    (JobExists, 409),
    (QueueFull, 429),
    (PathTaken, 409),
    (DiskFull, 507),
    (QueueUnavailable, 503),
    (FileWriteError, 500),
    (InputError, 400),
    (MissingModelsError, 400),
    (LoraloomError, 500),
)
_RETRY_AFTER_SECONDS = {429: 30, 503: 5, 507: 60}
_TYPES = {503: "queue_unavailable", 507: "disk_full"}


def status_of(error: LoraloomError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


def answer(error: LoraloomError, body: Mapping[str, JSON]) -> Answer:
    """The answer to a request that failed, with the error's status; of what goes away by itself also its type
    and when to try again."""
    status = status_of(error)
    kind = _TYPES.get(status)
    seconds = _RETRY_AFTER_SECONDS.get(status)
    return Answer(
        {**body, **({} if kind is None else {"type": kind})},
        status,
        None if seconds is None else {"Retry-After": str(seconds)},
    )


def handler(field: str) -> Callable[[Request, Exception], Awaitable[Answer]]:
    """What answers for a LoraloomError that a route lets through: an object with its message as `field`."""

    async def failed(_request: Request, error: Exception) -> Answer:
        if not isinstance(error, LoraloomError):
            raise error
        return answer(error, {field: str(error)})

    return failed


async def to_nobody(_request: Request, _error: Exception) -> Response:
    """What answers a client that is gone."""
    return Response(status_code=400)
