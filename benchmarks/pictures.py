"""Where the time to the first picture goes, and to the second.

    python benchmarks/pictures.py [WORKFLOW] [--models DIR] [--rounds 3] [--against SRC]

WORKFLOW: JSON; without one, the demo's. Each round starts a process anew: it imports, makes a session, draws
a picture, and one more with another seed, in float32 on the CPU. Printed are (medians) seconds
on the clock and of the processor, the clock's by kind of node, the peak of memory, how many modules were
imported, and the speed of a matrix product and a convolution in the same process, which bounds all else.
--against: the `src` folder of another version, measured in turns with this one; ratios are printed.
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
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def measured(workflow: Path | None, models: Path | None) -> dict[str, float]:
    """What this process takes, by name."""
    begun = time.perf_counter()
    import torch

    import loraloom
    from loraloom.session import Session

    demo = Path(loraloom.__file__).parent / "demo" / "data"
    graph = json.loads((workflow or demo / "workflow.json").read_text("utf-8"))
    found = {"import": time.perf_counter() - begun}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with Session(models or demo / "models", output_dir=folder, device="cpu", dtype="fp32") as session:
            found["session"] = time.perf_counter() - begun
            for which, seed in (("first", 1), ("second", 2)):
                begun, used = time.perf_counter(), time.process_time()
                prepared = session.prepare(graph, seed=seed)
                run = session.run_prepared(prepared)
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
    matrix, picture, kernel = torch.ones(1024, 1024), torch.ones(1, 320, 64, 64), torch.ones(320, 320, 3, 3)
    with torch.inference_mode():
        found["matmul GFLOP/s"] = 2 * 1024**3 / 1e9 / _best(lambda: matrix @ matrix)
        work = 2 * 9 * 320 * 320 * 64 * 64 / 1e9
        found["convolution GFLOP/s"] = work / _best(lambda: torch.conv2d(picture, kernel, padding=1))
    return found


def _best(work: object) -> float:
    """Seconds of the fastest of five calls."""
    assert callable(work)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workflow", type=Path, nargs="?")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measured(given.workflow, given.models)))
        return
    arguments = [str(given.workflow)] if given.workflow else []
    arguments += ["--models", str(given.models)] if given.models else []
    sources = [SOURCE, *([given.against] if given.against else [])]
    rounds = [[in_a_process(source, arguments) for source in sources] for _ in range(given.rounds)]
    for name in rounds[0][0]:
        values = [statistics.median(one[n].get(name, 0.0) for one in rounds) for n in range(len(sources))]
        ratio = f"  {values[0] / values[1]:6.2f}" if len(values) > 1 and values[1] else ""
        print(f"{name:40}" + "".join(f"{value:10.2f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
