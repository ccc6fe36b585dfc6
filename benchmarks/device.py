"""All that a device does, in one table: pictures, LoRAs, models larger than its memory, attention, products.

    python benchmarks/device.py --device cuda [--make DIR] [--to FILE] [--limit 360] [--only NAME …]
    python benchmarks/device.py --device sim

--make writes models in the shapes of published ones to DIR, with random values: Stable Diffusion 1.5, SDXL
and Flux.1 dev in fp8 and bf16, 50 GB together (memory, as /dev/shm, or a fast disk). Without it, narrow ones
are made: enough to see that everything runs and is right; the layers' results are then held to the CPU's.
"sim" is the simulated device of the tests, which counts what crosses, beside what has to cross at least: it
may be 1.1 times as much. Its times say nothing.

Each case is a process of its own with a limit of time; what fails is said and the rest goes on. The command
ends with 1 where something failed or a result is off. --to writes the rows as JSON, as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

TOLERATED = 0.05
"""How far off a result may be: of bfloat16 from float32, or of one attention from another."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--make", type=Path, metavar="DIR")
    parser.add_argument("--to", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=float, default=360, help="seconds for all cases together")
    parser.add_argument("--only", nargs="*", help="cases whose names contain one of these words")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        run_case(given)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return run_all(given, given.make or Path(temporary))


def run_case(given: argparse.Namespace) -> None:
    """One case, its rows written as they come, one a line."""
    from benchmarks.device_cases import CASES, Asked, Meter

    Meter(given.device)  # the simulated device has to be known before anything names it
    asked = Asked(given.folder, given.device, given.dtype, given.make is None, given.started)
    with given.to.open("w", encoding="utf-8") as file:
        for row in CASES[given.case][1](asked):
            file.write(json.dumps(row) + "\n")
            file.flush()


def run_all(given: argparse.Namespace, folder: Path) -> int:
    from benchmarks.device_cases import CASES

    said = about(given.device)
    print(" | ".join(said.values()), flush=True)
    print(f"{'':48}{'s':>9}{'peak GB':>9}{'moved MB':>10}{'least MB':>10}{'copies':>8}{'off by':>9}")
    begun, results, failed = time.monotonic(), list[dict[str, Any]](), False
    for name, (most, _) in CASES.items():
        left = given.limit - (time.monotonic() - begun)
        wanted = not given.only or any(word in name for word in given.only)
        if not wanted or left < 10:
            print(name + (": left out, the time is over" if wanted else ": not asked for"))
            continue
        rows, error = in_a_process(given, folder, name, min(most, left + 20))
        print(name, flush=True)
        for row in rows:
            show(row)
        if error:
            print(f"  FAILED: {error}", flush=True)
        is_off = any(row.get("off", 0) > TOLERATED for row in rows)
        exceeded = any("EXCEEDED" in str(row.get("said")) for row in rows)
        failed |= bool(error) or is_off or exceeded
        results.append({"case": name, "rows": rows, "error": error})
        if given.to:
            given.to.write_text(json.dumps({"about": said, "cases": results}, indent=1), encoding="utf-8")
    print(f"{time.monotonic() - begun:.0f} s in all")
    return int(failed)


def in_a_process(
    given: argparse.Namespace, folder: Path, name: str, most: float
) -> tuple[list[dict[str, Any]], str]:
    """A case's rows, and what it failed with."""
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "rows"
        command = [sys.executable, __file__, "--case", name, "--device", given.device, "--dtype", given.dtype]
        command += ["--folder", str(folder), "--to", str(rows), "--started", str(time.time())]
        command += ["--make", str(given.make)] if given.make else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        error = ""
        try:
            done = subprocess.run(
                command, env=environment, stderr=subprocess.PIPE, text=True, timeout=most, check=False
            )
            if done.returncode:
                error = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
                keep(given, f"== {name}\n{done.stderr}\n")
        except subprocess.TimeoutExpired as late:
            error = f"took longer than {most:.0f} s"
            keep(given, f"== {name}\n{late.stderr!r}\n")
        lines = rows.read_text("utf-8").splitlines() if rows.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")], error


def keep(given: argparse.Namespace, text: str) -> None:
    """All of what failed goes beside the results, or to the terminal."""
    if given.to is None:
        print(text, file=sys.stderr)
        return
    with given.to.with_suffix(".errors.txt").open("a", encoding="utf-8") as file:
        file.write(text)


def about(device: str) -> dict[str, str]:
    """What was measured on."""
    import torch

    name = device
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(device)
        name = f"{found.name}, {found.total_memory / 1e9:.0f} GB"
    return {"device": name, "torch": torch.__version__, "processors": f"{os.cpu_count()} processors"}


def show(row: dict[str, Any]) -> None:
    def number(key: str, width: int, form: str, unit: float = 1) -> str:
        value = row.get(key)
        return " " * width if value is None else f"{value / unit:{width}{form}}"

    cells = number("s", 9, ".4f") + number("peak", 9, ".2f", 1e9)
    cells += number("moved", 10, ".3f", 1e6) + number("least", 10, ".3f", 1e6) + number("copies", 8, ".0f")
    cells += number("off", 9, ".1e")
    print(f"  {row['what']:46}{cells}  {row.get('said', '')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
