"""The process that knows LoRA and model files for the server: it reads headers, and needs no torch.

Started as `python -m loraloom.cli.library_worker`. A question is a frame {"to": N, "do": NAME, …}, its
answer {"to": N, "answer": …} or {"to": N, "error": TEXT}. Files that are new are read between questions.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from loraloom.cli.base_header import base_components
from loraloom.errors import InputError, LoraloomError, ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.jobs import frames
from loraloom.jobs.worker import die_with_parent
from loraloom.lora import keeping
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import Hashes, HashIndex
from loraloom.lora.inspect import fit_lines, page_of
from loraloom.lora.library import Entry, Library
from loraloom.lora.metadata import facts
from loraloom.lora.sidecars import read_sidecars
from loraloom.models.recognition import recognise
from loraloom.weights.header import read_header

SAVE_EVERY = 500
"""Files read between two writings of the cache."""

Answer = Callable[["LibraryWorker", Mapping[str, Any], bytes], object]


class LibraryWorker:
    """Answers questions about one server's files."""

    def __init__(self, library: Library | None = None) -> None:
        self.library = library or Library()
        self._hashes, self._hashing = HashIndex(), threading.Lock()
        self._news = threading.Event()
        threading.Thread(target=self._read, name="loraloom-library", daemon=True).start()

    def answer(self, question: Mapping[str, Any], tail: bytes) -> object:
        """The answer to a question, as plain data. Raises LoraloomError."""
        known: dict[str, Answer] = {
            "list": LibraryWorker.list, "inspect": LibraryWorker.inspect, "hashes": LibraryWorker.hashes,
            "bases": LibraryWorker.bases, "rename": LibraryWorker.rename, "note": LibraryWorker.note,
            "preview": LibraryWorker.preview, "scan": LibraryWorker.scan, "check": LibraryWorker.check,
        }  # fmt: skip
        return known[str(question["do"])](self, question, tail)

    def list(self, question: Mapping[str, Any], _tail: bytes) -> object:
        """Entries that have changed since a version; with `scan` the folders are listed first. Who asks for a
        version of a process that has ended gets all, as listed now."""
        since = int(question["since"])
        if question["scan"] or not self.library.knows(since):
            self.scan(question, b"")
        found = self.library.since(since)
        loras = [_told(entry) for entry in found.entries]
        return {"loras": loras, "gone": found.gone, "version": found.version, "read": found.read,
                "total": found.total, "whole": found.whole}  # fmt: skip

    def scan(self, question: Mapping[str, Any], _tail: bytes) -> object:
        """List the folders; what is new is read in the background."""
        self.library.scan([Path(d) for d in question["directories"]])
        self._news.set()
        return {}

    def inspect(self, question: Mapping[str, Any], _tail: bytes) -> object:
        """A file's page, and how it fits a base where one is named."""
        entry = self._entry(question)
        path = Path(entry.path)
        base = question.get("base")
        page = page_of(read_lora(path), base_components(Path(base)) if base else None)
        sidecars = read_sidecars(path)
        notes = {name: sidecars.user.get(name) for name in keeping.NOTE_FIELDS if name in sidecars.user}
        return {
            **page.to_json(),
            "name": entry.name,
            "entry": _told(entry),
            "notes_fields": notes,
            "fit_lines": fit_lines(page.fit, page.title) if page.fit else [],
        }

    def hashes(self, question: Mapping[str, Any], _tail: bytes) -> object:
        """A file's hashes, and the names of files with equal tensors."""
        entry = self._entry(question)
        with self._hashing:
            own = self._hashes.hashes(Path(entry.path))
            same = [other.name for other in self.library.alike(entry) if self._same(other, own)]
            self._hashes.save()
        return {"hashes": own.named(), "duplicates": same}

    def _same(self, other: Entry, own: Hashes) -> bool:
        """Whether another file, if it is still there, has these tensors."""
        try:
            return self._hashes.hashes(Path(other.path)).tensors == own.tensors
        except ModelFileError:
            return False

    def bases(self, question: Mapping[str, Any], _tail: bytes) -> object:
        return [_base_of(path) for path in question["paths"]]

    def rename(self, question: Mapping[str, Any], _tail: bytes) -> object:
        entry = self._entry(question)
        root = str(entry.path).removesuffix(entry.name.replace("/", os.sep))
        keeping.rename(Path(entry.path), Path(root, str(question["new_name"])))
        return {}

    def note(self, question: Mapping[str, Any], _tail: bytes) -> object:
        keeping.write_notes(Path(self._entry(question).path), question["values"])
        return {}

    def preview(self, question: Mapping[str, Any], tail: bytes) -> object:
        keeping.write_preview(Path(self._entry(question).path), tail)
        return {}

    def check(self, question: Mapping[str, Any], _tail: bytes) -> object:
        """Whether a file that is in no folder yet is a LoRA. Raises ModelFileError that says what it is."""
        path = Path(question["file"])
        try:
            read_lora(path)
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(str(path), path.name)) from error
        return {}

    def _entry(self, question: Mapping[str, Any]) -> Entry:
        name = str(question["name"])
        entry = self.library.find(name)
        if (entry is None or not os.path.isfile(entry.path)) and question.get("directories"):
            self.scan(question, b"")
            entry = self.library.find(name)
        if entry is None:
            raise InputError(f"there is no LoRA {name[:200]!r}; read the folder again if it is new")
        return entry

    def _read(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            count = 0
            while self.library.read_next():
                count += 1
                if count % SAVE_EVERY == 0:
                    self.library.save()
            if count:
                self.library.save()


def _told(entry: Entry) -> dict[str, Any]:
    told = asdict(entry)
    del told["path"]
    return told


_UNKNOWN = {"family": "", "title": "", "size": 0, "channels": 4, "text_kind": "", "encoders": ()}


def _base_of(path: str) -> dict[str, Any]:
    try:
        return _base(FileIdentity.of(path))
    except OSError:  # it has just been taken away
        return _UNKNOWN


@lru_cache(maxsize=4096)
def _base(file: FileIdentity) -> dict[str, Any]:
    """What a base is, as its header shows: family, what people call it, the size it was trained on."""
    try:
        header = read_header(file.path)
        found = recognise(header)
    except LoraloomError:
        return _UNKNOWN
    family, recipe = found.family, found.family.recipe(found.shapes)
    size = facts(header.metadata).get("resolution", "").split("x")[0].split("×")[0]
    return {
        "family": family.name,
        "title": family.title,
        "size": int(size) if size.isdigit() else 0,
        "channels": family.latents.channels,
        "text_kind": next(iter(recipe.types), recipe.name),
        "encoders": recipe.encoders,
    }


def main() -> None:
    """Answer questions from standard input until it ends; hashing, which takes long, holds up no other."""
    die_with_parent()
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker, sending = LibraryWorker(), threading.Lock()

    def respond(question: Mapping[str, Any], tail: bytes) -> None:
        said = _answered(worker, question, tail)
        with sending:
            sink.write(frames.encode(said))
            sink.flush()

    while (frame := frames.read(source)) is not None:
        if frame[0]["do"] == "hashes":
            threading.Thread(target=respond, args=frame, name="loraloom-hashes", daemon=True).start()
        else:
            respond(*frame)


def _answered(worker: LibraryWorker, question: Mapping[str, Any], tail: bytes) -> dict[str, Any]:
    try:
        return {"to": question["to"], "answer": worker.answer(question, tail)}
    except LoraloomError as error:
        return {"to": question["to"], "error": str(error)}
    except Exception as error:  # noqa: BLE001 - one question fails, the process goes on
        sys.stderr.write(f"library: {type(error).__name__}: {error}\n")
        return {"to": question["to"], "error": f"this cannot be read: {error}"}


if __name__ == "__main__":
    main()
