"""Peak memory of a run against the size of its weights.

    python benchmarks/memory.py CHECKPOINT [--size 256] [--steps 2]

For float32 and bfloat16, in a process of its own: load the network, run it, release nothing, decode the
latent. Printed are the weights in use (as float32), the peak beyond what the imports take, and their
ratio; and the same for the activations alone (the peak beyond that of a picture of 64 × 64 pixels), since
those grow with the picture and not with the weights. Bounds: 1.35 in float32; in bfloat16 0.75 of that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

SMALL = 64
BOUNDS = {"fp32": 1.35, "bf16": 1.35 * 0.75}


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(checkpoint: Path, dtype: str, size: int, steps: int) -> dict[str, float]:
    """Run in this process; bytes before, at the end, and of the weights as float32."""
    import torch

    from loraloom.models.checkpoint import open_checkpoint
    from loraloom.models.memory import Memory
    from loraloom.sampling.inputs import Inputs
    from loraloom.sampling.types import Cond, SampleContext

    model, _, vae = open_checkpoint(checkpoint)
    blueprint = model.family.blueprint(model.weights.shapes)
    with torch.device("meta"):
        blueprint.build()  # what it imports is no part of the run
    before = peak_bytes()
    memory = Memory("cpu", dtype)  # pyright: ignore[reportArgumentType]
    network = memory.network(model)
    x = torch.randn(2, model.latent.channels, size // 8, size // 8)
    width = blueprint.config.get("cross_attention_dim", blueprint.config.get("joint_attention_dim"))
    assert isinstance(width, int)
    inputs = network.inputs(Cond(torch.randn(1, 77, width)), SampleContext(x, x))
    inputs = Inputs.joined([inputs], 2)
    with torch.inference_mode():
        for _ in range(steps):
            network(x, torch.full((2,), float(network.parametrisation.timestep(torch.tensor(1.0)))), inputs)
    weights = sum(4 * torch.Size(shape).numel() for shape in model.weights.shapes.values())
    if vae is not None:
        memory.autoencoder(vae).decode(x[:1])
        weights += sum(4 * torch.Size(shape).numel() for shape in vae.weights.shapes.values())
    return {"before": before, "peak": peak_bytes(), "weights": weights}


def in_own_process(checkpoint: Path, dtype: str, size: int, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(checkpoint), "--one", dtype]
    command += ["--size", str(size), "--steps", str(steps)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--one", choices=list(BOUNDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.checkpoint, options.one, options.size, options.steps)))
        return 0
    failed = False
    print("type     weights        peak  activations  ratio  bound")
    for dtype, bound in BOUNDS.items():
        small = in_own_process(options.checkpoint, dtype, SMALL, options.steps)
        large = in_own_process(options.checkpoint, dtype, options.size, options.steps)
        own = small["peak"] - small["before"]
        activations = max(0.0, large["peak"] - large["before"] - own)
        ratio = own / small["weights"]
        failed |= ratio > bound
        peak = large["peak"] - large["before"]
        sizes = "  ".join(f"{size / 1e9:7.2f} GB" for size in (small["weights"], peak, activations))
        print(f"{dtype:5} {sizes}  {ratio:5.2f}  {bound:5.2f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
