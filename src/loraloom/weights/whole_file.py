"""Writing a file so that its final name never stands for half of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from loraloom.errors import InputError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its final place, flush it, and give it its name at once; its mode is the umask's.

    InputError where that cannot be done; what stood at `path` is then still there.
    """
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}.{time.monotonic_ns()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from None
