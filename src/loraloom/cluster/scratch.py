"""Folders for what passes through a worker on its node. They go with it, however it ends.

A worker that is killed cannot tidy up: the next one of its machine does, and the command that kept the node.
Whose owner lives is told by a lock that the system lets go of with its process.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from loraloom.file_lock import try_lock

_PREFIX = "loraloom-worker-"
_LOCK = ".lock"


class Scratch:
    """A folder of this process. parent: where it lies; None: among the system's temporary files."""

    def __init__(self, parent: str | None = None) -> None:
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        new = self.path / f"{_LOCK}.new"
        self._lock = open(new, "wb")  # noqa: SIM115 - it is held as long as the process lives
        try_lock(self._lock)
        new.rename(self.path / _LOCK)  # only now may others look

    def end(self) -> None:
        """Delete it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(parent: str | None = None) -> None:
    """Delete the folders of processes that have ended."""
    for lock in Path(parent or tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with open(lock, "rb") as file:
                if try_lock(file):
                    shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue  # another one sweeps, or it is somebody else's
