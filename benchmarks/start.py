"""How soon commands and the server start, with the extra `cluster` installed and as if it were not.

    python benchmarks/start.py [--rounds 7] [--hide ray]

In each round every command runs both ways, in processes of their own: as it is, and with the package hidden
from imports. Printed are medians, of the clock and of the processor, their ratios, how many modules were
imported, and how many of the package's own among them. Ends with 1 where one of those was.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
COMMANDS = {
    "--version": ["--version"],
    "nodes KSampler": ["nodes", "KSampler"],
    "cluster --help": ["cluster", "--help"],
    "serve": ["serve", "--port", "0", "--no-frontend", "--devices", "none"],
}
WATCH = """
import atexit, importlib.abc, json, os, sys
hidden, note = os.environ["HIDDEN"], os.environ["NOTE"]
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if os.environ["HIDE"]:
    sys.meta_path.insert(0, Hide())
@atexit.register
def tell():
    own = [name for name in sys.modules if name.partition(".")[0] == hidden]
    with open(note, "a") as file:
        file.write(json.dumps([len(sys.modules), len(own)]) + "\\n")
"""


def started(words: list[str], folder: Path, package: str, hide: bool) -> tuple[float, float, int, int]:
    """Seconds of the clock and of the processor until the command ended, or listens; modules, and the
    package's."""
    note = folder / "note"
    note.unlink(missing_ok=True)
    path = os.pathsep.join([str(folder / "watch"), str(SOURCE)])
    told = {"HIDDEN": package, "NOTE": str(note), "HIDE": "1" if hide else "", "PYTHONPATH": path}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "loraloom", *words],
        cwd=folder, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "listens on" in line:
            clock = time.perf_counter() - begun
            process.send_signal(signal.SIGINT)
            break
    else:
        clock = time.perf_counter() - begun
    process.stderr.close()
    if sys.platform == "win32":
        raise SystemExit("processor times of a process and its children are asked for as Unix does")
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    modules, own = map(max, zip(*map(json.loads, note.read_text().splitlines()), strict=True))
    return clock, used.ru_utime + used.ru_stime, modules, own


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hide", default="ray", metavar="PACKAGE")
    options = parser.parse_args()
    ways, found = (False, True), dict[tuple[str, bool], list[tuple[float, float, int, int]]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "watch").mkdir()
        (folder / "watch/sitecustomize.py").write_text(WATCH)
        for round_ in range(options.rounds + 1):
            for command, words in COMMANDS.items():
                for hide in ways if round_ % 2 else ways[::-1]:
                    measured = started(words, folder, options.hide, hide)
                    if round_:  # the first one fills caches
                        found.setdefault((command, hide), []).append(measured)
    print(
        f"{'':16}{'there: s':>10}{'processor':>11}{'hidden: s':>11}{'processor':>11}{'ratios':>14}  modules"
    )
    imported = 0
    for command in COMMANDS:
        there, hidden = ([statistics.median(v) for v in zip(*found[command, h], strict=True)] for h in ways)
        imported += int(there[3])
        print(
            f"{command:16}{there[0]:10.3f}{there[1]:11.3f}{hidden[0]:11.3f}{hidden[1]:11.3f}"
            f"{there[0] / hidden[0]:7.3f}{there[1] / hidden[1]:7.3f}"
            f"  {there[2]:.0f} and {hidden[2]:.0f}, {there[3]:.0f} of {options.hide}"
        )
    return int(imported > 0)


if __name__ == "__main__":
    sys.exit(main())
