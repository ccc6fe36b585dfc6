"""One target under Atheris, that is libFuzzer guided by the branches and comparisons of Loraloom's bytecode.

    python -m tests.fuzz.guided TARGET FAULTS [libFuzzer's options and corpus folders]

An input that makes the target fail with anything but a LoraloomError, or take too long, is kept in the folder
FAULTS, each kind of fault once; the fuzzing goes on.
"""

from __future__ import annotations

import hashlib
import random
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

atheris: Any = import_module("atheris")  # so that types hold where it is not installed
with atheris.instrument_imports(include=["loraloom"]):
    from loraloom.errors import LoraloomError
    from tests.fuzz.targets import SLOW_SECONDS, TARGETS
    from tests.fuzz.trees import changed

_HANG_SECONDS = 20.0


class Hang(Exception):
    """An input that takes too long to be waited for."""


def _hangs(_number: int, _frame: FrameType | None) -> None:
    raise Hang(f"not done after {_HANG_SECONDS:g} s")


def _alarm(seconds: float) -> None:
    """Raise Hang after so many seconds; 0: no longer."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, _hangs)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    if sys.platform == "win32":
        sys.exit("needs a clock that interrupts, which Windows has not")
    name, faults, *rest = sys.argv[1:]
    target, folder, seen = TARGETS[name], Path(faults), set[str]()

    def once(content: bytes) -> None:
        _alarm(_HANG_SECONDS)
        begun, fault = time.process_time(), ""
        try:
            target.run(content)
        except LoraloomError:
            pass
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            fault = _place(error)
        _alarm(0)
        if time.process_time() - begun > SLOW_SECONDS:
            fault = fault or "slow"
        if fault and fault not in seen:
            seen.add(fault)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / hashlib.sha256(content).hexdigest()[:16]
            path.write_bytes(content)
            print(f"{name}: {fault}: {path}", flush=True)  # noqa: T201

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if target.tree is not None and rng.random() < 0.5:
            try:
                return changed(content, content, target.tree, rng)[:longest]
            except (ValueError, RecursionError):
                pass
        return atheris.Mutate(content, longest)

    def cross(content: bytes, other: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if target.tree is not None:
            try:
                return changed(content, other, target.tree, rng)[:longest]
            except (ValueError, RecursionError):
                pass
        begin, end = sorted(rng.randrange(len(other) + 1) for _ in range(2))
        at = rng.randrange(len(content) + 1)
        return (content[:at] + other[begin:end] + content[at:])[:longest]

    atheris.Setup([sys.argv[0], *rest], once, custom_mutator=mutate, custom_crossover=cross)
    atheris.Fuzz()


def _place(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/loraloom/" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
    return f"{type(error).__name__} at {where} ({str(error)[:80]!r})"


if __name__ == "__main__":
    main()
