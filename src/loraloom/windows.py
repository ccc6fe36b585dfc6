"""What Windows asks of paths beyond other systems."""

from __future__ import annotations

import sys
from pathlib import Path

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
