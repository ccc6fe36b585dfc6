"""Where the time to a picture goes, beside other programs, and what bounds it.

    python benchmarks/pictures.py [--case NAME…] [--models DIR] [--rounds 3] [--cold] [--dtype fp32]
        [--against SRC] [--diffusers] [--comfyui DIR] [--server COMMAND] [--program PATH]
    python benchmarks/pictures.py WORKFLOW --models DIR [--number 1] [--set NODE.INPUT=VALUE]…

--case: sd15 (512², LoRA), sdxl (1024², one step), flux, z_image (1024², LoRA); all, where none is named.
Their models are narrow and made for the run, or those of published names in the folder of --models.
WORKFLOW: what `loraloom run` takes. All is drawn on the CPU.

Each round starts a process anew: it imports, makes a session, draws a picture, and one more with another
seed. Printed are (medians) seconds on the clock and of the processor, how many of these the system takes, and
how many millions of pages it clears or finds, the clock's seconds by kind of node, the peak of memory, how
many modules were imported; and what bounds all else: the speed of a matrix product and a convolution in the
same process, and for a text, a step and the decoding their seconds once all is loaded, their operations, and
the share of the better of the two speeds that they reach (above 1 where products are saved).

--cold: the model files leave the page cache before each round, where the system lets them.
--against: the `src` folder of another version, measured in turns with this one; ratios are printed.
--diffusers: diffusers' own classes with the same weights (LoRAs merged), one step and one decoding of the
    very same tensors, loaded as its users do. How far what they give is from ours is printed.
--comfyui: a folder with ComfyUI, started on the processor with PyTorch's attention. --server: any command
    that starts a server with ComfyUI's HTTP interface; {port} and {models} stand for themselves. Measured is
    the time from its start to the first picture, and to the second.
--program: the binary of stable-diffusion.cpp, or a command that draws one picture and ends, with
    {checkpoint}, {network}, {vae}, {loras}, {positive}, {negative}, {output} and inputs of nodes ({seed},
    {steps}, {cfg}, {width}, {height}, …).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
HERE = Path(__file__).parent / "pictures_here.py"
sys.path[:0] = [str(ROOT), str(SOURCE)]

import pictures_cases as cases  # noqa: E402
import pictures_peers as peers  # noqa: E402

Figures: TypeAlias = "dict[str, float]"
Column: TypeAlias = "tuple[str, Callable[[], Figures]]"


def prepared(source: Path, number: int, models: Path, changes: Iterable[str]) -> dict[str, Any]:
    """A workflow in API format, with the changes."""
    command = [sys.executable, "-m", "loraloom", "run", str(source), "--workflow", str(number)]
    command += ["--models", str(models), "--dry-run", "--json"]
    command += [word for change in changes for word in ("--set", change)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["workflows"][0]


def in_a_process(source: Path, *words: str) -> Figures:
    command = [sys.executable, str(HERE), *words]
    begun, environment = time.perf_counter(), {**os.environ, "PYTHONPATH": str(source.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"process": time.perf_counter() - begun, **json.loads(done.stdout.splitlines()[-1])}


def forget(models: Path) -> None:
    """Let the system drop the pages of all model files."""
    if sys.platform != "linux":
        sys.exit("--cold needs Linux, which can be asked to drop a file's pages")
    for path in models.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def columns(given: argparse.Namespace, graph: dict[str, Any], models: Path, folder: Path) -> list[Column]:
    """What is measured, ours first. folder: for files of the measurement."""
    source = folder / "graph.json"
    source.write_text(json.dumps(graph))
    words = ("ours", str(source), "--models", str(models), "--dtype", given.dtype)
    handed = folder / "handed over"

    def ours() -> Figures:
        """The first time, what diffusers is given is written, once all is measured."""
        handing = ("--hand-over", str(handed)) if given.diffusers and not handed.exists() else ()
        return in_a_process(SOURCE, *words, *handing)

    found: list[Column] = [("loraloom", ours)]
    if given.against:
        found.append((str(given.against), lambda: in_a_process(given.against, *words)))
    if given.diffusers:
        found.append(("diffusers", lambda: in_a_process(SOURCE, "diffusers", str(handed))))
    servers = list(given.server)
    if given.comfyui:
        servers.append(peers.comfyui_command(given.comfyui, models, folder / "paths.yaml"))
    found += [(command, lambda c=command: peers.served(c, models, graph)) for command in servers]
    found += [(program, lambda p=program: peers.drawn(p, models, graph)) for program in given.program]
    return found


def measure(given: argparse.Namespace, about: str, graph: dict[str, Any], models: Path) -> None:
    """Rounds of all columns by turns, and their table."""
    with tempfile.TemporaryDirectory() as folder:
        measured = columns(given, graph, models, Path(folder))
        rounds: list[list[Figures]] = []
        for _ in range(given.rounds):
            rounds.append([])
            for _, run in measured:
                if given.cold:
                    forget(models)
                rounds[-1].append(run())
    print(f"\n{about}, {given.dtype}")
    report([name for name, _ in measured], rounds)


def report(names: list[str], rounds: list[list[Figures]]) -> None:
    """Medians, and how ours relates to each of the others. A peer's first picture counts from its start, as
    our process does."""
    for number, name in enumerate(names):
        print(f"[{number}] {name}")
    for name in dict.fromkeys(name for column in rounds[0] for name in column):
        values = [
            statistics.median(one[n][name] for one in rounds) if name in rounds[0][n] else None
            for n in range(len(names))
        ]
        shown = "".join(f"{_written(value):>11}" for value in values)
        ratios = "".join(
            f"  {values[0] / value:6.2f}" for value in values[1:] if value and values[0] is not None
        )
        print(f"{name:32}{shown}{ratios}")


def _written(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workflow", type=Path, nargs="?")
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--case", action="append", choices=sorted(cases.CASES))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NODE.INPUT=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="fp32", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument("--comfyui", type=Path, metavar="DIR")
    parser.add_argument("--server", action="append", default=[], metavar="COMMAND")
    parser.add_argument("--program", action="append", default=[], metavar="PATH")
    given = parser.parse_args()
    if given.workflow:
        if given.models is None:
            parser.error("a workflow needs its models: --models DIR")
        graph = prepared(given.workflow, given.number, given.models, given.changes)
        measure(given, str(given.workflow), graph, given.models)
        return
    for name in given.case or cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            measure_case(given, cases.CASES[name], Path(folder))


def measure_case(given: argparse.Namespace, case: cases.Case, folder: Path) -> None:
    models, about = given.models, f"{case.about}, {given.models}"
    if models is None:
        models, about = folder / "models", f"{case.about}, narrow models with random values"
        case.write(models)
    source = case.source
    if isinstance(source, dict):
        (folder / "workflow.json").write_text(json.dumps(source))
        source = folder / "workflow.json"
    graph = prepared(source, case.number, models, (*case.changes, *given.changes))
    measure(given, about, graph, models)


if __name__ == "__main__":
    main()
