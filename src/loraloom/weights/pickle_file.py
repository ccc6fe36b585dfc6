"""Pickled model files (.ckpt, .pt, .pth, .bin) → safetensors, without ever opening one in this process.

A pickle is a program. It is read by a process of its own (`pickle_child`) that has no network, no
environment, no rights to write or start anything, and limits on memory and time; what it hands back is
checked as any other stranger's safetensors file before it gets its name. No torch here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from loraloom.atomic_file import PartFile, move_file, part_file
from loraloom.errors import InputError, ModelFileError
from loraloom.weights.header import open_regular, read_header

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
CHILD = Path(__file__).with_name("pickle_child.py")
CHUNK = 1 << 20
LEAST_SECONDS, SECONDS_PER_GIGABYTE = 120, 120


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written. left_out: names of what was no tensor, the first of `left_out_count`."""

    path: Path
    tensors: int
    size: int
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0


def convert_pickle(source: Path, *, force: bool = False, seconds: float | None = None) -> Converted:
    """Write the tensors of a pickle as a .safetensors file beside it; `force` replaces one that is there.

    seconds: how long it may take; by default by the file's size. Raises ModelFileError where the file is
    none, is damaged, or asks for more than tensors, InputError where the name is taken; nothing is left
    behind then."""
    out = source.with_suffix(".safetensors")
    if out == source:
        raise InputError(f"{source}: would be written over itself; give it its own suffix (.pt) first")
    descriptor = open_regular(source)
    with os.fdopen(descriptor, "rb") as file:
        if os.path.lexists(out) and not force:
            raise InputError(f"{out} is there already; --force replaces it")
        size = os.fstat(file.fileno()).st_size
        allowed = seconds or LEAST_SECONDS + SECONDS_PER_GIGABYTE * size / 1e9
        run = _Run(source, size, allowed)
        with part_file(out.parent, run.output(file)) as part:
            _check(part.path, source)
            _name(part, out, force)
    report = run.report
    return Converted(
        out,
        _count(report.get("tensors")),
        out.stat().st_size,
        tuple(str(name) for name in cast("list[object]", report.get("left_out", []))),
        _count(report.get("left_out_count")),
    )


def _check(written: Path, source: Path) -> None:
    """What the child wrote is a stranger's file too: names that may not be, say."""
    try:
        read_header(written)
    except ModelFileError as error:
        raise ModelFileError(f"{source}: {str(error).removeprefix(f'{written}: ')}") from None


def _count(found: object) -> int:
    return found if isinstance(found, int) else 0


def _name(part: PartFile, out: Path, force: bool) -> None:
    if force:
        move_file(part.path, out)
    elif not part.claim(out):
        raise InputError(f"{out} is there already; --force replaces it")


class _Run:
    """One run of the child. report: what it said of itself, once its output has been read to the end."""

    def __init__(self, source: Path, size: int, seconds: float) -> None:
        self._source, self._size, self._seconds = source, size, seconds
        self.report: dict[str, object] = {}

    def output(self, file: IO[bytes]) -> Generator[bytes]:
        """The child's safetensors file in pieces; ModelFileError where it ends with an error."""
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                [sys.executable, "-I", "-B", str(CHILD), str(self._size), str(max(1, round(self._seconds)))],
                stdin=file, stdout=subprocess.PIPE, stderr=said, cwd=os.sep, env=_environment(),
                close_fds=True, start_new_session=True,
            )  # fmt: skip
            late = threading.Event()

            def stop() -> None:
                late.set()
                child.kill()

            timer = threading.Timer(self._seconds, stop)
            timer.start()
            try:
                assert child.stdout is not None
                total = 0
                while piece := child.stdout.read(CHUNK):
                    total += len(piece)
                    if total > 3 * self._size + 256 * CHUNK:
                        raise ModelFileError(f"{self._source}: its tensors are larger than the file explains")
                    yield piece
                code = child.wait()
            finally:
                timer.cancel()
                if child.poll() is None:
                    child.kill()
                child.wait()
                if child.stdout is not None:
                    child.stdout.close()
            self.report = _last_report(said)
        if late.is_set():
            raise ModelFileError(f"{self._source}: reading it took more than {self._seconds:.0f} s; given up")
        if (error := self.report.get("error")) is not None:
            raise ModelFileError(f"{self._source}: {error}")
        if code != 0 or not self.report:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ModelFileError(f"{self._source}: the process that read it ended with {how}")


def _environment() -> dict[str, str]:
    """What the child knows of its surroundings: how many threads, and what its system needs to start."""
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**kept, **threads, "MALLOC_ARENA_MAX": "1", "PYTHONUTF8": "1"}


def _last_report(said: IO[bytes]) -> dict[str, object]:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - CHUNK))
    for line in reversed(said.read().decode("utf-8", "replace").splitlines()):
        if line.startswith('{"report": '):
            try:
                found: object = json.loads(line)
            except ValueError:
                return {}
            report = cast("dict[str, object]", found).get("report") if isinstance(found, dict) else None
            return cast("dict[str, object]", report) if isinstance(report, dict) else {}
    return {}
