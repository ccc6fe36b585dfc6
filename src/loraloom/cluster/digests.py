"""What files hold, by BLAKE3, computed once for each state of a file."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, cast

from blake3 import blake3

from loraloom.atomic_file import write_file
from loraloom.file_identity import FileIdentity

DIGEST_CHARACTERS = 64
_PIECE_BYTES = 4 << 20


def digest_of(path: Path) -> str:
    """The BLAKE3 of a file, in hexadecimal. Read, not mapped: a mapped file that is cut short meanwhile ends
    the process."""
    digest, buffer = blake3(max_threads=blake3.AUTO), memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


class Digests:
    """Digests, remembered in a file; for several threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known = _read(file)

    def of(self, path: Path) -> str:
        """The digest of a file as it is now. Raises OSError."""
        identity = FileIdentity.of_status(path, path.stat())
        known = self._known.get(identity.path)
        if known is not None and known[:-1] == [*identity.state]:
            return str(known[-1])
        settled, digest = identity.settled, digest_of(path)
        if not settled:
            return digest
        with self._lock:
            self._known[identity.path] = [*identity.state, digest]
            write_file(self._file, json.dumps(self._known).encode())
        return digest


def _read(file: Path) -> dict[str, list[Any]]:
    """What was remembered; nothing when that cannot be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    known = cast("dict[str, Any]", found)
    return {path: entry for path, entry in known.items() if isinstance(entry, list)}
