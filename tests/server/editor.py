"""`loraloom serve` itself, for tests with editors and clients of others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, cast

from tests.server.running import ROOT, drain


def serve(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """The process and its address, once it listens; `folder` may hold models/."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "loraloom",
            "serve",
            "--port",
            "0",
            "--models",
            "models",
            "--dtype",
            "fp32",
            *options,
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
    )
    stderr = cast("IO[str]", process.stderr)
    for line in stderr:
        if "listens on" in line:
            threading.Thread(target=drain, args=(stderr,), daemon=True).start()
            return process, line.split()[-1]
    raise AssertionError("the server did not start")
