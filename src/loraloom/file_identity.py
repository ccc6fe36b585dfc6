"""Which file, in which state, told without reading it: while that is equal, what was learned of it holds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_COARSEST_CLOCK_NS = 2_000_000_000  # FAT's
BESIDE = {"adapter_model.safetensors": "adapter_config.json"}
"""Name of a file → name of what belongs to it: a PEFT LoRA has its scale beside it."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """One state of one file.

    mtime_ns is what a copy may keep of another file (`cp -p`, archives, images of containers), ctime_ns is
    when the system changed this one; on Windows, when it was made. beside: the same of the file that belongs
    to it, if any."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    beside: tuple[int, ...] = ()

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileIdentity:
        """A file and what belongs to it, as they are now. Raises OSError."""
        where = Path(path)
        own = cls.of_status(where, where.stat())
        name = BESIDE.get(where.name)
        if name is None:
            return own
        try:
            beside = cls.of_status(where, where.with_name(name).stat()).state
        except OSError:
            return own
        return cls(own.path, own.size, own.mtime_ns, own.ctime_ns, own.inode, beside)

    @classmethod
    def of_status(cls, path: str | os.PathLike[str], status: os.stat_result) -> FileIdentity:
        """A file alone, as it was when its status was asked for."""
        return cls(
            os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        )

    @property
    def state(self) -> tuple[int, ...]:
        """All but the name."""
        return (self.size, self.mtime_ns, self.ctime_ns, self.inode, *self.beside)

    @property
    def content(self) -> tuple[int, int, int]:
        """What stays while a file that is open gets another name, or none, and changes with what it holds."""
        return self.size, self.mtime_ns, self.inode

    @property
    def settled(self) -> bool:
        """Whether a change from now on would show: the clocks of file systems are coarse, and a file that was
        just written may be written again in the same moment."""
        now = time.time_ns()
        return not any(0 <= now - at < _COARSEST_CLOCK_NS for at in (self.mtime_ns, self.ctime_ns))
