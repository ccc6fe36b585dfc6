"""The wheel and the source distribution of this tree."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path


def build(folder: Path) -> Built:
    """Both distributions, in `folder`, as they are built for a release."""
    script = [sys.executable, str(ROOT / "scripts" / "release.py"), "--draft", "--output", str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, sdist)
