"""Whether this machine can compute as the options ask: what only torch knows, asked in a process of its own.

python -m loraloom.cli.device_check    (reads JSON: "devices", "dtype", "computing")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loraloom.errors import InputError, LoraloomError
from loraloom.models.computing import USUAL, Computing, computing_of

ANYWHERE = {"auto", "cpu"}
"""Devices that are on every machine."""


def check_devices(devices: Sequence[str], dtype: str = "auto", computing: Computing = USUAL) -> None:
    """Raises InputError where a device is not there, or cannot compute like this.

    Torch is imported by a child, and only where something is asked for that not every machine can do."""
    is_usual = dtype != "fp16" and computing.attention == "auto" and not computing.compiled
    if is_usual and ANYWHERE.issuperset(devices):
        return
    asked = {"devices": [*devices], "dtype": dtype, "computing": asdict(computing)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    if done.returncode == InputError.exit_code:
        raise InputError(done.stdout.strip())
    if done.returncode:
        last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        raise LoraloomError(
            f"torch cannot be used: {last or f'its process ended with {done.returncode}'}; "
            "`loraloom doctor` says more"
        )


def main() -> int:
    """The child: prints what is wrong with the options that it reads, and ends with their exit code."""
    from loraloom.models.residency.memory import Memory

    asked: dict[str, Any] = json.load(sys.stdin)
    computing = computing_of(asked["computing"])
    try:
        for device in asked["devices"]:
            Memory(device, asked["dtype"], computing=computing)
    except InputError as error:
        sys.stdout.write(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
