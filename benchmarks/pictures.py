"""Where the time to the first picture goes, and to the second.

    python benchmarks/pictures.py [WORKFLOW] [--models DIR] [--set NODE.INPUT=VALUE]… [--rounds 3] [--cold]
        [--dtype fp32] [--against SRC] [--server COMMAND] [--program COMMAND]

WORKFLOW: JSON; without one, the demo's. Each round starts a process anew: it imports, makes a session, draws
a picture, and one more with another seed, on the CPU. Printed are (medians) seconds on the clock and of the
processor, the clock's by kind of node, seconds a step once the network is loaded, the peak of memory, how
many modules were imported, and what bounds all else: the speed of a matrix product and a convolution in the
same process, and the share of the better of the two that a step reaches, by the operations that it needs.

--cold: the model files leave the page cache before each round, where the system lets them.
--against: the `src` folder of another version, measured in turns with this one; ratios are printed.
--server: starts a server with ComfyUI's HTTP interface; {port} and {models} stand for themselves:
    "python ComfyUI/main.py --cpu --port {port} --extra-model-paths-config paths.yaml". Measured is the time
    from its start to the first picture, and to the second.
--program: draws one picture and ends; {checkpoint}, {loras}, {positive}, {negative}, {seed}, {steps},
    {cfg}, {width}, {height} and {output} are the workflow's:
    "sd -m {checkpoint} -p {positive} -n {negative} --steps {steps} --seed {seed} -W {width} -H {height}
    --cfg-scale {cfg} --lora-model-dir {loras} -o {output}".
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peer_server import started

SOURCE = Path(__file__).parents[1] / "src"
DEMO = SOURCE / "loraloom" / "demo" / "data"


def measured(workflow: Path, models: Path, changes: list[str], dtype: Any) -> dict[str, float]:
    """What this process takes, by name."""
    begun = time.perf_counter()
    import torch

    from loraloom.engine.events import NodeProgress
    from loraloom.session import Session

    found = {"import": time.perf_counter() - begun}
    steps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with Session(models, output_dir=folder, device="cpu", dtype=dtype) as session:
            found["session"] = time.perf_counter() - begun
            for which, seed in (("first", 1), ("second", 2)):
                begun, used = time.perf_counter(), time.process_time()
                prepared = session.prepare(workflow, seed=seed, set=changes)
                run = session.run_prepared(
                    prepared,
                    on_event=lambda event: (
                        steps.append(time.perf_counter()) if isinstance(event, NodeProgress) else None
                    ),
                )
                found[f"{which} picture"] = time.perf_counter() - begun
                found[f"{which} picture, processor"] = time.process_time() - used
                for node, seconds in run.timings.items():
                    known = prepared.nodes.get(node)
                    name = f"{which}: {node if known is None else known.class_type}"
                    found[name] = found.get(name, 0.0) + seconds
            found["modules"] = len(sys.modules)
            if sys.platform != "win32":
                import resource

                unit = 1 if sys.platform == "darwin" else 1024
                found["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
            between = [after - before for before, after in zip(steps, steps[1:], strict=False)]
            if between:
                found["s/step"] = min(between)
            operations = counted(lambda: session.run(workflow, seed=3, set=changes))
    with torch.inference_mode():
        found |= peaks(session.memory.dtype)
    if between:
        found["GFLOP/step"] = operations / 1e9
        fastest = max(found["matmul GFLOP/s"], found["convolution GFLOP/s"])
        found["share of the peak"] = operations / found["s/step"] / fastest / 1e9
    return found


def counted(draw: Callable[[], object]) -> int:
    """The operations of one evaluation of the network: products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    from loraloom.models.diffusion_network import DiffusionNetwork

    evaluated: Any = DiffusionNetwork._evaluated  # pyright: ignore[reportPrivateUsage]
    totals: list[int] = []

    def counting(*given: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            made = evaluated(*given)
        totals.append(counter.get_total_flops())
        return made

    setattr(DiffusionNetwork, evaluated.__name__, counting)
    try:
        draw()
    finally:
        setattr(DiffusionNetwork, evaluated.__name__, evaluated)
    return max(totals, default=0)


def peaks(dtype: Any) -> dict[str, float]:
    """The speed of a matrix product and of a convolution."""
    import torch

    matrix, picture = torch.ones(1024, 1024, dtype=dtype), torch.ones(1, 320, 64, 64, dtype=dtype)
    kernel = torch.ones(320, 320, 3, 3, dtype=dtype)
    order = torch.channels_last
    last, kernel_last = picture.contiguous(memory_format=order), kernel.contiguous(memory_format=order)
    convolution = min(
        best(lambda: torch.conv2d(picture, kernel, padding=1)),
        best(lambda: torch.conv2d(last, kernel_last, padding=1)),
    )
    return {
        "matmul GFLOP/s": 2 * 1024**3 / 1e9 / best(lambda: matrix @ matrix),
        "convolution GFLOP/s": 2 * 9 * 320 * 320 * 64 * 64 / 1e9 / convolution,
    }


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five calls."""
    seconds: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def in_a_process(source: Path, arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments, "--here"]
    begun, environment = time.perf_counter(), {**os.environ, "PYTHONPATH": str(source.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"process": time.perf_counter() - begun, **json.loads(done.stdout.splitlines()[-1])}


def served(command: str, models: Path, graph: Mapping[str, Any]) -> dict[str, float]:
    """Seconds from a server's start to its first picture, and for a second one."""
    words = [word.replace("{models}", str(models.resolve())) for word in shlex.split(command)]
    begun = time.perf_counter()
    with started(words) as server:
        found = {"ready": time.perf_counter() - begun}
        for which, seed in (("first picture", 1), ("second picture", 2)):
            before = begun if seed == 1 else time.perf_counter()
            server.draw(seeded(graph, seed))
            found[which] = time.perf_counter() - before
    return found


def drawn(command: str, models: Path, graph: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a program that draws the workflow's picture."""
    inputs: dict[str, Any] = {}
    for node in graph.values():
        inputs |= {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
    sampler = next(node["inputs"] for node in graph.values() if "positive" in node["inputs"])
    for side in ("positive", "negative"):
        inputs[side] = graph[sampler[side][0]]["inputs"]["text"]
    for name, kind in (("checkpoint", "checkpoints"), ("loras", "loras")):
        inputs[name] = (models / kind).resolve()
    inputs["checkpoint"] /= inputs.get("ckpt_name", "")
    if "lora_name" in inputs:
        inputs["positive"] += f"<lora:{Path(inputs['lora_name']).stem}:{inputs.get('strength_model', 1)}>"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "picture.png"
        words = [word.format(**inputs, output=output) for word in shlex.split(command)]
        begun = time.perf_counter()
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
        if not output.is_file():
            raise SystemExit(f"{words[0]} wrote no {output.name}")
        return {"first picture": time.perf_counter() - begun}


def seeded(graph: Mapping[str, Any], seed: int) -> dict[str, Any]:
    changed = json.loads(json.dumps(graph))
    for node in changed.values():
        for name in ("seed", "noise_seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed
    return changed


def forget(models: Path) -> None:
    """Let the system drop the pages of all model files."""
    if sys.platform != "linux":
        sys.exit("--cold needs Linux, which can be asked to drop a file's pages")
    for path in models.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepared(workflow: Path, models: Path, changes: list[str]) -> dict[str, Any]:
    """The workflow in API format, with the changes."""
    command = [sys.executable, "-m", "loraloom", "run", str(workflow), "--models", str(models), "--dry-run"]
    command += ["--json", *(word for change in changes for word in ("--set", change))]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["workflows"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workflow", type=Path, nargs="?", default=DEMO / "workflow.json")
    parser.add_argument("--models", type=Path, default=DEMO / "models")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NODE.INPUT=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="fp32", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--server", action="append", default=[])
    parser.add_argument("--program", action="append", default=[])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measured(given.workflow, given.models, given.changes, given.dtype)))
        return
    arguments = [str(given.workflow), "--models", str(given.models), "--dtype", given.dtype]
    arguments += [word for change in given.changes for word in ("--set", change)]
    sources = [SOURCE, *([given.against] if given.against else [])]
    columns: list[tuple[str, Callable[[], dict[str, float]]]] = [
        (str(source), lambda source=source: in_a_process(source, arguments)) for source in sources
    ]
    if given.server or given.program:
        graph = prepared(given.workflow, given.models, given.changes)
        columns += [(c, lambda c=c: served(c, given.models, graph)) for c in given.server]
        columns += [(c, lambda c=c: drawn(c, given.models, graph)) for c in given.program]
    rounds: list[list[dict[str, float]]] = []
    for _ in range(given.rounds):
        rounds.append([])
        for _, measure in columns:
            if given.cold:
                forget(given.models)
            rounds[-1].append(measure())
    report([name for name, _ in columns], rounds)


def report(columns: list[str], rounds: list[list[dict[str, float]]]) -> None:
    """Medians, and how ours relates to each of the others. A peer's first picture counts from its start, as
    our process does."""
    for number, name in enumerate(columns):
        print(f"[{number}] {name}")
    for name in dict.fromkeys(name for one in rounds[0] for name in one):
        values = [
            statistics.median(one[n][name] for one in rounds) if name in rounds[0][n] else None
            for n in range(len(columns))
        ]
        shown = "".join(f"{'–' if value is None else f'{value:.2f}':>10}" for value in values)
        ratios = "".join(
            f"  {values[0] / value:6.2f}" for value in values[1:] if value and values[0] is not None
        )
        print(f"{name:40}{shown}{ratios}")


if __name__ == "__main__":
    main()
