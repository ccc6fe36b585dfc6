"""Loading a checkpoint and its first step, also side by side with another checkout of Loraloom.

    python benchmarks/first_step.py CHECKPOINT [--against CHECKOUT] [--repeat 5] [--size 256]

CHECKPOINT lies in the folder checkpoints/ of a folder of models. Each measurement is a process of its own,
the checkouts by turns: the imports, the first run (the checkpoint opened, two prompts encoded, one step of
Euler, the latent saved), and a second run with another seed. Printed are medians and, with --against, their
ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEASURED = ("imports", "first run", "second run")
PROGRAM = """
import json, sys, tempfile, time
start = time.perf_counter()
from loraloom.session import Session
import loraloom.nodes.loaders, loraloom.nodes.sampling
imported = time.perf_counter()
models, name, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
node = lambda kind, **inputs: {"class_type": kind, "inputs": inputs}
graph = {
    "1": node("CheckpointLoaderSimple", ckpt_name=name),
    "2": node("CLIPTextEncode", clip=["1", 1], text="a red fox in the snow"),
    "3": node("CLIPTextEncode", clip=["1", 1], text="blurry"),
    "4": node("EmptyLatentImage", width=size, height=size, batch_size=1),
    "5": node("KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], seed=1,
              steps=1, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0),
    "6": node("SaveLatent", samples=["5", 0], filename_prefix="step"),
}
times = [imported - start]
with tempfile.TemporaryDirectory() as output, Session(models, output_dir=output) as session:
    for seed in (1, 2):
        graph["5"]["inputs"]["seed"] = seed
        start = time.perf_counter()
        session.run(graph)
        times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def measure(checkout: Path, checkpoint: Path, size: int) -> list[float]:
    """Seconds of each of MEASURED."""
    command = [sys.executable, "-c", PROGRAM, str(checkpoint.parents[1]), checkpoint.name, str(size)]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            command, env=environment, cwd=elsewhere, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"{checkout} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    checkouts = [ROOT] + ([given.against.resolve()] if given.against else [])
    times: dict[Path, list[list[float]]] = {checkout: [] for checkout in checkouts}
    for _ in range(given.repeat):
        for checkout in checkouts:
            times[checkout].append(measure(checkout, given.checkpoint.resolve(), given.size))
    for index, what in enumerate(MEASURED):
        medians = [statistics.median(one[index] for one in times[checkout]) for checkout in checkouts]
        line = f"{what}: {medians[0]:.2f} s"
        if given.against:
            line += f"; there {medians[1]:.2f} s; ratio {medians[0] / medians[1]:.2f}"
        print(line)


if __name__ == "__main__":
    main()
