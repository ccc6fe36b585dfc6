"""Request bodies: read within limits, parsed whatever content type a client claims."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from loraloom.atomic_file import explained
from loraloom.errors import WorkflowError
from loraloom.server.release import RELEASE
from loraloom.workflow.graph import JSON, kind_of
from loraloom.workflow.json_text import read_json

_LARGE = 100_000


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body; raises HTTPException 413 when it is longer than `limit`, before it is read."""
    _check_length(request, limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise HTTPException(413, f"the body is longer than {limit} bytes")
        chunks.append(chunk)
    RELEASE.after(size)
    return b"".join(chunks)


async def save_body(request: Request, path: Path, limit: int) -> None:
    """Put the body into a new file, piece by piece. Raises HTTPException 413 as `read_bytes` does,
    FileWriteError."""
    _check_length(request, limit)
    size = 0
    with explained(path), open(path, "xb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise HTTPException(413, f"the body is longer than {limit} bytes")
            await asyncio.to_thread(file.write, chunk)


def _check_length(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise HTTPException(413, f"the body has {declared} bytes, at most {limit} are taken")


async def read_object(request: Request, limit: int, *, empty: bool = False) -> dict[str, JSON]:
    """The JSON object in the body; `empty` lets an empty body stand for an empty object.

    Raises HTTPException 400 that says what was found instead.
    """
    value = await read_value(request, limit, empty=empty)
    if not isinstance(value, dict):
        raise HTTPException(400, f"the body is {kind_of(value)}, expected a JSON object")
    return value


async def read_value(request: Request, limit: int, *, empty: bool = False) -> JSON:
    """The JSON value in the body."""
    body = await read_bytes(request, limit)
    if empty and not body.strip():
        return {}
    try:
        text = body.decode("utf-8")
        if len(text) > _LARGE:
            return await asyncio.to_thread(read_json, text, "the body")
        return read_json(text, "the body")
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not UTF-8 text") from error
    except WorkflowError as error:
        raise HTTPException(400, str(error)) from error
