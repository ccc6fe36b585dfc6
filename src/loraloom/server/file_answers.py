"""Answers out of open files: what was checked is what is sent, whatever its name means by then."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import BinaryIO
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from loraloom.file_identity import FileIdentity

SANDBOX = {"Content-Security-Policy": "default-src 'none'; sandbox"}
_INLINE = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"})
_PIECE_BYTES = 256 * 1024


def freshness(identity: FileIdentity, *also: object) -> dict[str, str]:
    """Headers that let a browser keep a file and have it ask each time whether that is still the file: names
    of pictures are used again. also: what else the answer depends on."""
    said = repr((identity.state, also)).encode()
    tag = hashlib.md5(said, usedforsecurity=False).hexdigest()
    return {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}


def is_known(headers: Mapping[str, str], tag: str) -> bool:
    """Whether who asks has this very answer already (If-None-Match, RFC 9110 section 13.1.2)."""
    said = (one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(","))
    return any(one in (tag, "*") for one in said)


class FileAnswer(Response):
    """Sends an open file piece by piece, and closes it; to who has it already it says only that."""

    def __init__(self, file: BinaryIO, media_type: str, headers: dict[str, str]) -> None:
        stat = os.fstat(file.fileno())
        self._file, self._size = file, stat.st_size
        about = {
            "Content-Length": str(stat.st_size),
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
            **freshness(FileIdentity.of_status("", stat)),
        }
        super().__init__(None, media_type=media_type, headers={**about, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            if is_known(Headers(scope=scope), self.headers["ETag"]):
                del self.headers["Content-Length"]
                self.status_code, self._size = 304, 0
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            left = 0 if scope["method"] == "HEAD" else self._size
            while left:
                piece = await asyncio.to_thread(self._file.read, min(left, _PIECE_BYTES))
                if not piece:
                    raise OSError("the file became shorter while it was sent")
                left -= len(piece)
                if left:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                else:
                    await send({"type": "http.response.body", "body": piece})
                    return
            await send({"type": "http.response.body", "body": b""})


def served(file: BinaryIO, name: str) -> Response:
    """A file of somebody's, shown when it is a picture, else only to be saved. name: the last part of its."""
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    inline = media_type in _INLINE
    kind = "inline" if inline else "attachment"
    plain = re.fullmatch(r"[\w .()+-]*", name, re.ASCII)
    said = f'filename="{name}"' if plain else f"filename*=utf-8''{quote(name)}"
    headers = {"Content-Disposition": f"{kind}; {said}", **SANDBOX}
    return FileAnswer(file, media_type if inline else "application/octet-stream", headers)
