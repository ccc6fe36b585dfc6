"""Processes whose writing is recorded, by a library that gcc builds from recorder.c."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("recorder.c")


@dataclass(frozen=True, slots=True)
class Recording:
    """root: the folder that is watched; file: the records; environment: of the processes to watch."""

    root: Path
    file: Path
    environment: dict[str, str]


def recorded(folder: Path) -> Recording:
    """A fresh recording in a folder; skips the test where there is no gcc."""
    compiler = shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and gcc")
    library, root, file = folder / "recorder.so", folder / "disk", folder / "records"
    command = [compiler, "-O1", "-Wall", "-Wno-nonnull", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
    subprocess.run([*command, "-ldl"], check=True)
    root.mkdir()
    file.touch()
    named = {"LD_PRELOAD": str(library), "RECORD_ROOT": str(root), "RECORD_FILE": str(file)}
    return Recording(root, file, {**os.environ, **named})
