"""Fuzzes the readers of strangers' files, guided by the lines that an input reaches.

    scripts/fuzz [--minutes 20] [TARGET …]

An input that makes a reader fail with anything but a LoraloomError, or take too long, is kept in
tests/fuzz/corpus/TARGET and named; the quick tests run all that are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from loraloom.errors import LoraloomError
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
SLOW_SECONDS = 5.0
_HANG_SECONDS = 20.0
_MAX_BYTES = 64 * 1024
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -1e308, "", "1", "\ud800", "a" * 3000, [], {},
    [[]], [None], ["1", 0], ["1", -1], ["1", 1e30], {"": None}, {"__value__": []}, [0] * 200,
)  # fmt: skip
_NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"9223372036854775808", b"1e400", b"0.5")


class Hang(Exception):
    """An input that takes too long to be waited for."""


def _hangs(_number: int, _frame: FrameType | None) -> None:
    raise Hang(f"not done after {_HANG_SECONDS:g} s")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Lines:
    """Which lines of Loraloom an input reaches."""

    def __init__(self) -> None:
        self.known: set[tuple[CodeType, int]] = set()
        self._now: set[tuple[CodeType, int]] = set()
        self.new = False

    def of(self, run: Any, content: bytes) -> None:
        """Run it; `new` says whether it reached a line that no other has. Raises what it raises."""
        self._now = set()
        sys.settrace(self._trace)
        try:
            run(content)
        finally:
            sys.settrace(None)
            self.new = not self._now <= self.known
            self.known |= self._now

    def _trace(self, frame: FrameType, event: str, _arg: object) -> Any:
        return self._line if "/loraloom/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, _arg: object) -> Any:
        self._now.add((frame.f_code, frame.f_lineno))
        return self._line


def mutated(content: bytes, pool: list[bytes], target: Target, rng: random.Random) -> bytes:
    """Another input, made of one and pieces of others."""
    if target.tree is not None and rng.random() < 0.7:
        decode, encode = target.tree
        try:
            tree = [decode(content)]
            for _ in range(rng.choice((1, 1, 2, 5))):
                _change(tree, decode(rng.choice(pool)), rng)
            return encode(tree[0])[:_MAX_BYTES]
        except (ValueError, RecursionError):
            pass
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 16, 64)))
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[at:end] = b""
            case 2:
                data[at:at] = data[at:end] * rng.choice((1, 2, 30))
            case 3:
                data[at:end] = rng.randbytes(end - at)
            case 4:
                other = rng.choice(pool)
                begin = rng.randrange(len(other) + 1)
                data[at:end] = other[begin : begin + rng.choice((4, 32, 256))]
            case 5:
                data[at:end] = rng.choice(_NUMBERS)
            case 6 if rng.random() < 0.1:
                del data[at:]
            case _ if target.words:
                data[at : rng.choice((at, end))] = rng.choice(target.words)
            case _:
                pass
    return bytes(data[:_MAX_BYTES])


def _change(tree: list[Any], other: Any, rng: random.Random) -> None:
    """Change one place of a JSON tree, which lies in a list."""
    holder: Any = tree
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice([*holder]) if isinstance(holder, dict) else rng.randrange(len(holder))
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            holder[str(rng.choice((*holder, "", "-1", "9" * 30)))] = holder.pop(key)
        case 1 if holder is not tree:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 3:
            while isinstance(other, dict | list) and other and rng.random() < 0.8:
                other = rng.choice([*(other.values() if isinstance(other, dict) else other)])
            holder[key] = other
        case _:
            holder[key] = rng.choice(_VALUES)


def fuzz(name: str, seconds: float, seed: int) -> int:
    """How many faults a target has shown, each once."""
    if sys.platform == "win32":
        sys.exit("what hangs is stopped by a signal that Windows does not have")
    target, rng, lines = TARGETS[name], random.Random(seed), Lines()
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    pool: list[bytes] = [*target.seeds(), *kept]
    faults: dict[str, Path] = {}
    signal.signal(signal.SIGALRM, _hangs)
    tried, until = 0, time.monotonic() + seconds
    waiting = [*pool]
    while time.monotonic() < until:
        content = waiting.pop() if waiting else mutated(rng.choice(pool), pool, target, rng)
        tried += 1
        signal.setitimer(signal.ITIMER_REAL, _HANG_SECONDS)
        begun, fault = time.monotonic(), ""
        try:
            lines.of(target.run, content)
        except LoraloomError:
            pass
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            fault = _place(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if time.monotonic() - begun > SLOW_SECONDS:
            fault = fault or "slow"
        if fault and fault not in faults:
            faults[fault] = _keep(name, content)
            say(f"{name}: {fault}: {faults[fault]}")
        elif lines.new and not fault and len(pool) < 5000:
            pool.append(content)
    say(f"{name}: {tried} inputs, {len(lines.known)} lines, {len(faults)} faults")
    return len(faults)


def _place(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/loraloom/" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
    return f"{type(error).__name__} at {where} ({str(error)[:80]})"


def _keep(name: str, content: bytes) -> Path:
    path = CORPUS / name / hashlib.sha256(content).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    say(f"seed {options.seed}")
    names = options.targets or [*TARGETS]
    sys.exit(sum(fuzz(name, options.minutes * 60, options.seed) for name in names) > 0)


if __name__ == "__main__":
    main()
