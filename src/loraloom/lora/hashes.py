"""The names by which the world knows a LoRA's content, computed and never believed from the file itself.

AutoV1: first 8 hex of SHA-256 over bytes 0x100000–0x110000. SHA-256 of the whole file, AutoV2 its first 10.
The tensors' SHA-256 (bytes behind the header; kohya's `sshs_model_hash`), AutoV3 its first 12: it survives
edits of the metadata. BLAKE3 of the whole file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from blake3 import blake3

from loraloom.atomic_file import write_file
from loraloom.errors import FileWriteError, ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.weights.header import open_regular, read_header

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing, which an ai-toolkit release wrote into every file as its hash."""

_CHUNK = 1 << 22
_AUTOV1 = (0x100000, 0x110000)


@dataclass(frozen=True, slots=True)
class Hashes:
    """All hashes of one file, lower-case hexadecimal. tensors: SHA-256 of the data behind the header."""

    sha256: str
    tensors: str
    autov1: str
    blake3: str

    @property
    def autov2(self) -> str:
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        return self.tensors[:12]

    def named(self) -> dict[str, str]:
        """Every hash by the name that Civitai and others use; small files lack the bytes of AutoV1."""
        found = {
            "sha256": self.sha256,
            "autov1": self.autov1,
            "autov2": self.autov2,
            "autov3": self.autov3,
            "blake3": self.blake3,
        }
        return {name: value for name, value in found.items() if value != EMPTY_SHA256[:8]}

    def match(self, wanted: str) -> bool:
        """Whether a hash that someone noted, in any of these forms and in any case, is this file's."""
        text = wanted.strip().lower().removeprefix("0x")
        if len(text) < 8 or any(character not in "0123456789abcdef" for character in text):
            return False
        if len(text) == 8 and text == self.autov1 != EMPTY_SHA256[:8]:  # of bytes that small files lack
            return True
        return any(whole.startswith(text) for whole in (self.sha256, self.tensors, self.blake3))


def hashes_of(path: Path) -> Hashes:
    """Read the file once and compute all hashes."""
    header = read_header(path)
    whole, tensors, first = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    fast = blake3()
    offset = 0
    with os.fdopen(open_regular(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            fast.update(chunk)
            tensors.update(chunk[max(header.data_start - offset, 0) :])
            begin, end = (max(edge - offset, 0) for edge in _AUTOV1)
            first.update(chunk[begin:end])
            offset += len(chunk)
    return Hashes(whole.hexdigest(), tensors.hexdigest(), first.hexdigest()[:8], fast.hexdigest())


def embedded_hash_note(metadata: Mapping[str, str], hashes: Hashes) -> str | None:
    """What is wrong with the hash that the file states of itself; None where it is right or absent."""
    stated = (metadata.get("sshs_model_hash") or metadata.get("modelspec.hash_sha256") or "").lower()
    stated = stated.removeprefix("0x")
    if not stated or stated == hashes.tensors:
        return None
    if stated == EMPTY_SHA256:
        return "its metadata states the hash of an empty file, as one ai-toolkit release wrote for every LoRA"
    return (
        f"its metadata states the hash {stated[:12]}…, its tensors have {hashes.autov3}…: edited or re-saved"
    )


def cache_file() -> Path:
    """Where hashes are remembered: in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "loraloom" / "lora-hashes.json"


class HashIndex:
    """Hashes of files, remembered in a small JSON file for as long as the files stay as they are.

    A cache file that is missing or damaged is an empty one; one that cannot be written costs time only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_file()
        self._known = _read_index(self._path)
        self._changed = False

    def hashes(self, path: Path) -> Hashes:
        """The hashes of a file, computed if it is another or was changed since."""
        try:
            identity = FileIdentity.of_status(path, os.stat(path))
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error}") from None
        state = [*identity.state]
        entry = self._known.get(identity.path)
        if entry is not None and entry[0] == state:
            return entry[1]
        settled, hashes = identity.settled, hashes_of(path)
        if settled:
            self._known[identity.path] = (state, hashes)
            self._changed = True
        return hashes

    def find(self, wanted: str, files: Iterable[Path]) -> Path | None:
        """The file with that hash, wherever it was moved and whatever it is called now."""
        for path in files:
            try:
                if self.hashes(path).match(wanted):
                    return path
            except ModelFileError:
                continue
        return None

    def save(self) -> None:
        """Write what was learned; the old file stays whole until the new one is complete."""
        if not self._changed:
            return
        data = {path: [state, asdict(hashes)] for path, (state, hashes) in self._known.items()}
        try:
            write_file(self._path, json.dumps({"version": 1, "files": data}).encode())
        except FileWriteError:
            return
        self._changed = False


Entry = tuple[list[int], Hashes]


def _read_index(path: Path) -> dict[str, Entry]:
    try:
        found: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    files = cast(dict[str, object], found).get("files") if isinstance(found, dict) else None
    known: dict[str, Entry] = {}
    for name, entry in (cast(dict[str, object], files) if isinstance(files, dict) else {}).items():
        try:
            state, values = cast(tuple[list[int], dict[str, str]], entry)
            known[name] = (list(state), Hashes(**values))
        except (TypeError, ValueError):
            continue
    return known
