"""Peak memory of a run against the size of its weights.

    python benchmarks/memory.py CHECKPOINT [--size 256] [--steps 2] [--storage int8 fp8 gguf:Q8_0] [--rank 16]

For float32 and bfloat16, in a process of its own: load the network, run it, release nothing, decode the
latent. Printed are the weights in use (as float32), the peak beyond what the imports take, and their
ratio; and the same for the activations alone (the peak beyond that of a picture of 64 × 64 pixels), since
those grow with the picture and not with the weights. Bounds: 1.35 in float32; in bfloat16 0.75 of that.

With --storage the network is written in each of these formats first (`loraloom models quantize`) and run with
a LoRA of this rank on every matrix. Printed are the file, the LoRA's factors, the activations, the peak, and
what the peak has beyond the three: a quantised file is in memory once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraloom.models.handles import DiffusionModel
    from loraloom.weights.patch import PatchUse

import psutil

if sys.platform != "win32":
    import resource

SMALL = 64
BOUNDS = {"fp32": 1.35, "bf16": 1.35 * 0.75}


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_lora(model: DiffusionModel, rank: int) -> tuple[PatchUse, int]:
    """A LoRA on every matrix of a network, and its bytes as float32."""
    import torch

    from loraloom.weights.patch import Factors, PatchUse

    @dataclass(frozen=True, eq=False)
    class Change:
        low_rank: Factors
        signature: str
        rows: None = None

        def apply(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
            return weight.addmm_(self.low_rank.up, self.low_rank.down, alpha=strength)

        def factors(self) -> Factors:
            return self.low_rank

    @dataclass(frozen=True, eq=False)
    class Lora:
        digest: str
        changes: dict[str, list[Change]]

        def patches(self) -> dict[str, list[Change]]:
            return self.changes

    matrices = {name: shape for name, shape in model.weights.shapes.items() if len(shape) == 2}
    changes = {
        name: [Change(Factors(torch.zeros(rank, shape[1]), torch.zeros(shape[0], rank)), name)]
        for name, shape in matrices.items()
    }
    return PatchUse(Lora("random", changes), 1.0), sum(4 * rank * sum(shape) for shape in matrices.values())


def measure(checkpoint: Path, dtype: str, size: int, steps: int, rank: int = 0) -> dict[str, float]:
    """Run in this process; bytes before, at the end, of the weights as float32, of the network as its file
    has it, and of a LoRA's factors."""
    import torch

    from loraloom.models.checkpoint import open_checkpoint
    from loraloom.models.residency.memory import Memory
    from loraloom.sampling.inputs import Inputs
    from loraloom.sampling.types import Cond, SampleContext

    model, _, vae = open_checkpoint(checkpoint)
    factors = 0
    if rank:
        use, factors = random_lora(model, rank)
        model = model.with_lora(use)
    blueprint = model.blueprint
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
    stored = model.weights.nbytes
    return {"before": before, "peak": peak_bytes(), "weights": weights, "stored": stored, "factors": factors}


def in_own_process(checkpoint: Path, dtype: str, size: int, steps: int, rank: int = 0) -> dict[str, float]:
    command = [sys.executable, __file__, str(checkpoint), "--one", dtype]
    command += ["--size", str(size), "--steps", str(steps), "--rank", str(rank)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def print_storage(checkpoint: Path, formats: list[str], size: int, steps: int, rank: int) -> None:
    """A line for each format, computing in bfloat16."""
    from loraloom.weights.quantise import quantise_file

    print("storage        file  factors  activations     peak   beyond")
    for to in formats:
        with tempfile.TemporaryDirectory() as folder:
            quantised = Path(folder) / "network"
            quantise_file(checkpoint, to, quantised, architecture="network")
            small = in_own_process(quantised, "bf16", SMALL, steps, rank)
            large = in_own_process(quantised, "bf16", size, steps, rank)
        own = small["peak"] - small["before"]
        activations = max(0.0, large["peak"] - large["before"] - own)
        beyond = own - small["stored"] - small["factors"]
        numbers = small["stored"], small["factors"], activations, own + activations, beyond
        print(f"{to:10}" + "".join(f"{number / 1e6:8.0f} MB" for number in numbers))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--storage", nargs="+", metavar="FORMAT", default=[])
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--one", choices=list(BOUNDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.checkpoint, options.one, options.size, options.steps, options.rank)
        print(json.dumps(found))
        return 0
    if options.storage:
        rank = options.rank or 16
        print_storage(options.checkpoint, options.storage, options.size, options.steps, rank)
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
