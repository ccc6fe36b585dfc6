"""What Windows asks beyond other systems: of long paths, and of child processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 247
"""Characters that a folder's path may have there in its plain form."""


def extended(path: Path) -> Path:
    """On Windows, the form of a long path that may have 32,767 characters; elsewhere the path itself."""
    return Path(extended_form(str(path.absolute()))) if sys.platform == "win32" else path


def extended_form(path: str) -> str:
    r"""`C:\a` → `\\?\C:\a`, `\\server\share\a` → `\\?\UNC\server\share\a`; short paths stay as they are."""
    if len(path) <= LONGEST or path.startswith("\\\\?\\"):
        return path
    path = path.replace("/", "\\")
    return f"\\\\?\\UNC\\{path[2:]}" if path.startswith("\\\\") else f"\\\\?\\{path}"


def out_of_reach_of_ctrl_c() -> dict[str, Any]:
    """Arguments for starting a process that Ctrl-C in the terminal does not reach: its parent ends it."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


_CRASHES: Mapping[int, str] = {
    0xC0000005: "it read or wrote memory that is not its own",
    0xC0000017: "memory ran out",
    0xC000001D: "the processor does not know one of its instructions",
    0xC00000FD: "its stack ran over",
    0xC0000135: "a library that it needs was not found",
    0xC0000142: "a library that it needs could not start",
    0xC0000409: "it noticed damage of its own memory",
}


def crash(code: int) -> str | None:
    """What the exit code of a process that crashed on Windows means; None where it did not crash there.

    Such a code is an NTSTATUS of the severity "error" (MS-ERREF 2.3)."""
    status = code & 0xFFFFFFFF
    if status < 0xC0000000 or -256 < code < 0:
        return None
    said = f"Windows status 0x{status:08X}"
    return f"{_CRASHES[status]} ({said})" if status in _CRASHES else said
