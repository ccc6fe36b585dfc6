"""What a device does with models and LoRAs: bytes that cross, memory, time, beside the least possible.

    python benchmarks/device.py --device cuda [--models DIR --network NAME] [--dtype bf16] [--steps 8]
    python benchmarks/device.py --device sim

Without --models, narrow models with random weights are made: enough to see that everything runs and is right.
With them, NAME is a file of DIR/diffusion_models or DIR/checkpoints. "sim" is the simulated device of the
tests, which counts what crosses; its times say nothing. Every line is also held to the CPU's result or to the
first line's; the command ends with 1 where one is off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tests import tiny_models
from tests.models.plain_loras import plain_lora
from torch import Tensor

from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency import memory as memory_module
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.storage import weights_bytes
from loraloom.sampling.guidance import CFG
from loraloom.sampling.run import completed, sample
from loraloom.sampling.samplers.registry import method
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond

SHARES = (2.0, 0.5, 0.25, 0.1)


class Meter:
    """Time, the peak of the device's memory and, on the simulated device, what crosses."""

    def __init__(self, device: str) -> None:
        self._sim: Any = None
        if device == "sim":
            from tests.sim_device.device import sim_device

            self._sim = sim_device(Path(tempfile.gettempdir()) / "loraloom-sim-device")
        self._device = torch.device(device)
        self._module: Any = None if device == "cpu" else torch.get_device_module(self._device)

    def measure(self, work: Callable[[], Tensor]) -> tuple[Tensor, float, int, int]:
        """(result, seconds, peak bytes, bytes to the device; -1 where nothing counts them)"""
        if self._sim is not None:
            self._sim.reset()
        elif hasattr(self._module, "reset_peak_memory_stats"):
            self._module.reset_peak_memory_stats(self._device)
        start = time.perf_counter()
        found = work()
        if hasattr(self._module, "synchronize"):
            self._module.synchronize()
        seconds = time.perf_counter() - start
        if self._sim is not None:
            return found, seconds, self._sim["peak"], self._sim["to_bytes"]
        has_peak = hasattr(self._module, "max_memory_allocated")
        return found, seconds, self._module.max_memory_allocated(self._device) if has_peak else -1, -1


@dataclass(frozen=True)
class Case:
    model: DiffusionModel
    latent: Tensor
    cond: Cond
    steps: int

    def run(self, memory: Memory, model: DiffusionModel | None = None) -> Tensor:
        network = memory.network(model or self.model)
        with torch.inference_mode():
            steps = sample(
                network,
                CFG((self.cond,), (self.cond,), 1.0),
                latent=torch.zeros_like(self.latent),
                noise=self.latent,
                method=method("euler"),
                sigmas=sigmas_for(network.parametrisation, "simple", self.steps),
                seed=1,
            )
            return completed(steps).latent

    def styled(self, strength: float) -> DiffusionModel:
        """With a random LoRA on every matrix."""
        shapes = {name: shape for name, shape in self.model.weights.shapes.items() if len(shape) == 2}
        return self.model.with_lora(plain_lora("benchmark", shapes).at(strength)[0])


def case_of(model: DiffusionModel, side: int, steps: int) -> Case:
    """Random conditionings of the widths that the model's configuration states."""
    config = model.family.blueprint(model.weights.shapes).config
    names = ("joint_attention_dim", "cross_attention_dim", "cap_feat_dim")
    width = next((config[name] for name in names if name in config), None)
    if not isinstance(width, int):
        raise SystemExit(f"how wide prompts of {model.family.title} are is not stated; take a UNet or Flux")
    pooled = config.get("pooled_projection_dim", 1280)
    generator = torch.Generator().manual_seed(1)
    cond = Cond(
        torch.randn(1, 77, width, generator=generator),
        torch.randn(1, pooled if isinstance(pooled, int) else 1280, generator=generator),
    )
    return Case(model, torch.randn(1, model.latent.channels, side, side, generator=generator), cond, steps)


def lines(case: Case, device: str, dtype: Any, meter: Meter) -> Iterator[tuple[str, Tensor, float, int, int]]:
    """Name of a line, result, seconds, peak, bytes to the device."""
    memory = Memory(device, dtype)
    runs = [("load, run", case.model), ("run", case.model)]
    strengths = [("LoRA on", 0.3), ("strength 0.3 → 0.2", 0.2), ("the same again", 0.2), ("LoRA off", 0.0)]
    runs += [(name, case.styled(strength)) for name, strength in strengths]
    for name, model in runs:
        yield name, *meter.measure(lambda model=model: case.run(memory, model))
    size = weights_bytes(case.model.weights, memory.dtype, "quantized")
    memory.release()
    for share in SHARES:
        held = Memory(device, dtype, budget=int(share * size) + 2 * memory_module.MARGIN)
        yield f"budget {share:.0%}, load", *meter.measure(lambda held=held: case.run(held))
        yield f"budget {share:.0%}, run", *meter.measure(lambda held=held: case.run(held))
        held.release()


def opened(arguments: argparse.Namespace, folder: Path) -> DiffusionModel:
    if arguments.models is None:
        memory_module.MARGIN = 1 << 20  # the usual one is larger than the model
        shapes = tiny_models.flux_shapes(double=8, single=16)
        return open_diffusion_model(tiny_models.write(folder / "flux.safetensors", shapes, torch.bfloat16))
    for place, read in (("diffusion_models", open_diffusion_model), ("checkpoints", open_checkpoint)):
        path = Path(arguments.models) / place / arguments.network
        if path.is_file():
            found = read(path)
            return found[0] if isinstance(found, tuple) else found
    raise SystemExit(f"{arguments.network} is neither in diffusion_models nor in checkpoints")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--network", default="")
    parser.add_argument("--side", type=int, default=0, help="of the latent (default: 16, with --models 128)")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    meter = Meter(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        model = opened(arguments, Path(folder))
        case = case_of(model, arguments.side or (128 if arguments.models else 16), arguments.steps)
        wanted: dict[bool, Tensor] = {}
        if arguments.models is None:
            wanted[False] = case.run(Memory("cpu", "fp32"))
        print(f"{model.family.title}, {case.steps} steps on {arguments.device}")
        print(f"{'':24}{'s':>9}{'peak MB':>10}{'moved MB':>10}{'off by':>9}")
        worst = 0.0
        for name, found, seconds, peak, moved in lines(case, arguments.device, arguments.dtype, meter):
            plain = "LoRA on" not in name and "0.2" not in name and "again" not in name
            base = wanted.setdefault(not plain, found)
            off = float((found - base).norm() / base.norm()) if plain else 0.0
            worst = max(worst, off)
            counted = f"{moved / 1e6:10.1f}" if moved >= 0 else f"{'':10}"
            print(f"{name:24}{seconds:9.2f}{peak / 1e6:10.1f}{counted}{off:9.1e}")
    return int(worst > 0.05)


if __name__ == "__main__":
    sys.exit(main())
