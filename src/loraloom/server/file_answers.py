"""Answers out of open files: what was checked is what is sent, whatever its name means by then."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import re
from email.utils import formatdate
from typing import BinaryIO
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SANDBOX = {"Content-Security-Policy": "default-src 'none'; sandbox"}
_INLINE = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"})
_PIECE_BYTES = 256 * 1024


class FileAnswer(Response):
    """Sends an open file piece by piece, and closes it."""

    def __init__(self, file: BinaryIO, media_type: str, headers: dict[str, str]) -> None:
        stat = os.fstat(file.fileno())
        self._file, self._size = file, stat.st_size
        tag = hashlib.md5(f"{stat.st_mtime_ns}-{stat.st_size}".encode(), usedforsecurity=False).hexdigest()
        about = {
            "Content-Length": str(stat.st_size),
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
            "ETag": f'"{tag}"',
        }
        super().__init__(None, media_type=media_type, headers={**headers, **about})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
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
