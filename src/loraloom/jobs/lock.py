"""One server per folder: the lock that says so, with its owner's name for whoever finds it taken."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from loraloom.atomic_file import make_folder
from loraloom.errors import InputError
from loraloom.file_lock import try_lock


class FolderInUse(InputError):
    """Another server has opened the same folder."""


class FolderLock:
    """Held from `acquire` until `release` or the end of the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "server.lock"
        self._file: IO[str] | None = None

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock; raises FolderInUse, which names the owner, when it is taken for too long."""
        make_folder(self.path.parent)
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - kept open while the lock is held
        until = time.monotonic() + wait_seconds
        while not try_lock(file):
            if time.monotonic() >= until:
                file.seek(0)
                owner = file.read(500).strip() or "unknown"
                file.close()
                raise FolderInUse(
                    f"{self.path.parent} is in use by another server ({owner}). Stop that one, or give "
                    "this one a folder of its own with --user-dir."
                )
            time.sleep(0.05)
        file.seek(0)
        file.truncate()
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        file.write(json.dumps(owner))
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
