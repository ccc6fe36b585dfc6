"""Fuzzes the readers of strangers' files with Atheris (Linux, Python 3.11).

    scripts/fuzz [--minutes 20] [--work FOLDER] [TARGET …]

An input that makes a reader fail with anything but a LoraloomError, crash, or take too long, is kept in
tests/fuzz/faults/TARGET and named. Of the inputs that found new ways through the code, the fewest and
smallest that reach every line again are kept in tests/fuzz/corpus/TARGET, where the next run begins. The
quick tests read everything that is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.targets import TARGETS, Target

HERE = Path(__file__).parent
CORPUS, FAULTS = HERE / "corpus", HERE / "faults"
MAX_BYTES, MAX_KEPT_BYTES = 16 * 1024, 8 * 1024
"""Of an input that is tried, and of one that is kept."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def lines(target: Target, content: bytes) -> set[tuple[CodeType, int]]:
    """The lines of Loraloom that an input reaches."""
    found: set[tuple[CodeType, int]] = set()

    def line(frame: FrameType, _event: str, _arg: object) -> Any:
        found.add((frame.f_code, frame.f_lineno))
        return line

    def call(frame: FrameType, _event: str, _arg: object) -> Any:
        return line(frame, "", None) if "/loraloom/" in frame.f_code.co_filename else None

    sys.settrace(call)
    try:
        target.run(content)
    except Exception:  # noqa: BLE001 - what fails is kept elsewhere
        pass
    finally:
        sys.settrace(None)
    return found


def fewest(target: Target, inputs: Iterable[bytes]) -> list[bytes]:
    """Inputs that reach every line that any of them reaches: those that add the most lines first."""
    reached = {content: lines(target, content) for content in inputs if len(content) <= MAX_KEPT_BYTES}
    known: set[tuple[CodeType, int]] = set()
    kept: list[bytes] = []
    while reached:
        best = max(reached, key=lambda content: (len(reached[content] - known), -len(content), content))
        if not reached[best] - known:
            break
        known |= reached.pop(best)
        kept.append(best)
    return kept


def fuzz(name: str, seconds: float, seed: int, work: Path) -> int:
    """How many faults a target has shown, each once."""
    target, found = TARGETS[name], work / "corpus" / name
    corpus, faults = CORPUS / name, FAULTS / name
    _write(work / "seeds" / name, target.seeds())
    for folder in (found, corpus, faults):
        folder.mkdir(parents=True, exist_ok=True)
    words = work / f"{name}.dict"
    words.write_text(
        "".join('"' + "".join(rf"\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    )
    before = known = {*faults.glob("*")}
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 1:
        options = {
            "max_total_time": int(left), "max_len": MAX_BYTES, "timeout": 0, "rss_limit_mb": 3000,
            "seed": seed, "dict": words, "artifact_prefix": f"{faults}/", "use_value_profile": 1,
            "print_final_stats": 1,
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(faults)]
        command += [f"-{key}={value}" for key, value in options.items()]
        ended = subprocess.run([*command, *map(str, (found, corpus, work / "seeds" / name))])
        seed += 1
        if ended.returncode == 0:
            break
        say(f"{name}: ended with {ended.returncode}")
        if known == (known := {*faults.glob("*")}):
            sys.exit(f"{name}: cannot be fuzzed")
    kept = fewest(target, [path.read_bytes() for folder in (found, corpus) for path in folder.glob("*")])
    for path in corpus.glob("*"):
        path.unlink()
    _write(corpus, kept)
    known = {*faults.glob("*")}
    new = known - before
    if not known:
        faults.rmdir()
    say(f"{name}: {len(kept)} inputs kept, {len(new)} faults")
    return len(new)


def _write(folder: Path, contents: Iterable[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--work", type=Path, help="where everything that was found stays")
    options = parser.parse_args()
    say(f"seed {options.seed}")
    names = options.targets or [*TARGETS]
    with tempfile.TemporaryDirectory() as folder:
        work: Path = options.work or Path(folder)
        sys.exit(sum(fuzz(name, options.minutes * 60, options.seed, work) for name in names) > 0)


if __name__ == "__main__":
    main()
