"""Time to change LoRAs on a resident model, beside one read and one write of the weights they touch.

    python benchmarks/lora_switch.py --models DIR [--checkpoint NAME] [--dtype fp32|bf16] [--diffusers]
                                     [--comfyui DIR]

DIR is a folder of models in ComfyUI's layout. The LoRAs are drawn at random in memory (rank 16, every
attention and feed-forward projection of the network, as kohya's trainer places them), so that only the
changes are timed. The yardstick is the memory pass that no change can avoid: each touched weight is read from
the file once and written once in the type to compute in, in this very process. Eight LoRAs of rank 16 are 128
multiplications per element: where the processor, not the memory, is the limit, the line with their products
alone says so.

SD1.5 on two cores: 320 M touched weights, 2 · 128 · 320 M = 82 GFLOP, 500 to 590 ms at 140 to 160 GFLOP/s,
near the float32 peak; 1.5 passes are 230 to 390 ms. No exact way around it was found:
- bfloat16 products are 2.1 times as fast here, but a float16 factor is two bfloat16 halves: 4 products
  and 1.9 times the time; a bfloat16 one needs 1, but PyTorch 2.13 has no float32 result for that on the CPU.
- Reading, adding and rounding in strips that stay in the cache took 0.9 to 1.3 times as long as today's way
  (side by side on a busy machine): the products bound it, not the memory.
- A float32 sum of the other LoRAs leaves 10 GFLOP, but is a second copy of the model (1.3 GB here, 48 GB for
  Flux.1), and sums that are updated instead of rebuilt depend on the order of past changes in the last bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.resident import Resident
from loraloom.weights.patch import PatchUse, Stack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLACES = (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_in", ".proj_out", ".ff.net.0.proj", ".ff.net.2")


@dataclass(frozen=True)
class Timing:
    """One kind of change: seconds of its repetitions and the weights that it touched."""

    name: str
    seconds: tuple[float, ...]
    touched: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def make_lora(folder: Path, model: DiffusionModel, number: int, rank: int) -> LoadedLora:
    """A LoRA file in kohya's names with random factors, loaded for the model."""
    generator = torch.Generator().manual_seed(number)
    tensors: dict[str, torch.Tensor] = {}
    for weight, shape in model.weights.shapes.items():
        module = weight.removesuffix(".weight")
        if module != weight and module.endswith(PLACES):
            name = "lora_unet_" + module.replace(".", "_")
            ones = [1] * (len(shape) - 2)
            tensors[name + ".lora_up.weight"] = (
                torch.randn(shape[0], rank, *ones, generator=generator).half() * 0.01
            )
            tensors[name + ".lora_down.weight"] = (
                torch.randn(rank, *shape[1:], generator=generator).half() * 0.01
            )
            tensors[name + ".alpha"] = torch.tensor(8.0)
    path = folder / f"{number}.safetensors"
    save_file(tensors, path)
    component = Component(model.family.name, model.weights.shapes, dict(model.lora_aliases()))
    return load_lora(read_lora(path), {"model": component})


def timed(change: Callable[[], object]) -> float:
    start = time.perf_counter()
    change()
    return time.perf_counter() - start


def memory_pass(model: DiffusionModel, touched: Sequence[str], dtype: torch.dtype) -> Callable[[], None]:
    """Read every touched weight as stored, and write it in `dtype` where it lives."""
    buffers = {name: torch.zeros(model.weights.shapes[name], dtype=dtype) for name in touched}

    def run() -> None:
        for name, buffer in buffers.items():
            model.weights.read_into(name, buffer)

    return run


def products(loras: Sequence[LoadedLora]) -> Callable[[], None]:
    """The low-rank products of all LoRAs alone, no weight read: what arithmetic cannot do without."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for weight in loras[0].model.patches():
        found = [patch.factors() for lora in loras for patch in lora.model.patches()[weight]]
        factors = [one for one in found if one is not None]
        pairs.append((torch.cat([one.up for one in factors], 1), torch.cat([one.down for one in factors])))

    def run() -> None:
        for up, down in pairs:
            up @ down  # pyright: ignore[reportUnusedExpression]

    return run


Uses: TypeAlias = "list[tuple[LoadedLora, float]]"


def changes(loras: Sequence[LoadedLora]) -> dict[str, tuple[Uses, Uses]]:
    """Stacks before and after: strength, swap, on, off, adding to and removing from a stack of eight."""
    first, second = loras[0], loras[1]
    eight = [(lora, 0.1 + 0.1 * n) for n, lora in enumerate(loras[:8])]
    return {
        "first LoRA on": ([], [(first, 1.0)]),
        "strength 1.0 → 0.7": ([(first, 1.0)], [(first, 0.7)]),
        "swap A → B": ([(first, 1.0)], [(second, 1.0)]),
        "last LoRA off": ([(first, 1.0)], []),
        "add the 8th": (eight[:7], eight),
        "remove one of 8": (eight, eight[1:]),
    }


def stack(uses: Uses) -> Stack:
    return tuple(PatchUse(lora.model, strength) for lora, strength in uses)


def measure(resident: Resident, loras: Sequence[LoadedLora], repeat: int) -> Iterator[Timing]:
    touched = len(loras[0].model.patches())
    for name, (before, after) in changes(loras).items():
        seconds: list[float] = []
        wanted = stack(after)
        for _ in range(repeat):
            resident.apply(stack(before))
            seconds.append(timed(lambda wanted=wanted: resident.apply(wanted)))
        yield Timing(name, tuple(seconds), touched)
    resident.apply(())


def report(timings: Sequence[Timing], yardstick: float) -> None:
    print(f"{'one read + write pass':<24}{yardstick * 1e3:9.0f} ms   ratio")
    for timing in timings:
        ratio = timing.median / yardstick
        print(f"{timing.name:<24}{timing.median * 1e3:9.0f} ms   {ratio:5.2f}   ({timing.touched} weights)")


@contextmanager
def loras_for(model: DiffusionModel, count: int, rank: int) -> Generator[list[LoadedLora]]:
    with TemporaryDirectory() as folder:
        yield [make_lora(Path(folder), model, number, rank) for number in range(count)]


def diffusers_times(rank: int, repeat: int) -> Iterator[Timing]:
    """The same changes with diffusers and PEFT on a UNet of SD1.5's size, fused as for full speed."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from peft import LoraConfig

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    config = LoraConfig(r=rank, lora_alpha=rank // 2, target_modules=[place[1:] for place in PLACES])
    for name in ("a", "b"):
        unet.add_adapter(config, adapter_name=name)

    def fuse(name: str, strength: float) -> None:
        unet.set_adapters([name], [strength])
        unet.fuse_lora(adapter_names=[name])

    def switch(name: str, strength: float) -> Callable[[], None]:
        def run() -> None:
            unet.unfuse_lora()
            fuse(name, strength)

        return run

    for label, name, strength in (("strength 1.0 → 0.7", "a", 0.7), ("swap A → B", "b", 1.0)):
        seconds: list[float] = []
        for _ in range(repeat):
            fuse("a", 1.0)
            seconds.append(timed(switch(name, strength)))
            unet.unfuse_lora()
        yield Timing(f"diffusers: {label}", tuple(seconds), 0)


def comfyui_times(
    folder: Path | None, checkpoint: Path, loras: Sequence[LoadedLora], dtype: str, repeat: int
) -> Iterator[Timing]:
    """The same changes with ComfyUI's ModelPatcher on the CPU: the old stack unpatched, the new one patched.

    Written for v0.3.64. Reading the files and finding their keys is not counted.
    """
    if folder is not None:
        sys.path.insert(0, str(folder))
    options: Any = import_module("comfy.cli_args").args  # to be set before anything else is imported
    options.cpu = True
    setattr(options, f"{dtype}_unet", True)
    sd: Any = import_module("comfy.sd")
    utils: Any = import_module("comfy.utils")
    base = sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0]
    cpu = torch.device("cpu")

    def patcher(uses: Uses) -> Any:
        model = base.clone()
        for lora, strength in uses:
            tensors = utils.load_torch_file(lora.receipt.file, safe_load=True)
            model, _ = sd.load_lora_for_models(model, None, tensors, strength, 0.0)
        return model

    def switch(old: Any, new: Any) -> None:
        old.unpatch_model(cpu)
        new.patch_model(cpu)

    for name, (before, after) in changes(loras).items():
        old, new = patcher(before), patcher(after)
        seconds: list[float] = []
        for _ in range(repeat):
            old.patch_model(cpu)
            seconds.append(timed(lambda pair=(old, new): switch(*pair)))
            new.unpatch_model(cpu)
        yield Timing(f"ComfyUI: {name}", tuple(seconds), max(len(old.patches), len(new.patches)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--checkpoint", default="v1-5-pruned-emaonly-fp16.safetensors")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--diffusers", action="store_true", help="time diffusers' fuse and unfuse too")
    parser.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout (v0.3.64) to time too"
    )
    options = parser.parse_args()
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    model, _, _ = open_checkpoint(options.models / "checkpoints" / options.checkpoint)
    blueprint = model.blueprint
    with loras_for(model, 8, options.rank) as loras:
        resident = Resident(blueprint, model.weights, dtype=dtype, device=device)
        touched = list(loras[0].model.patches())
        run = memory_pass(model, touched, dtype)
        run()
        passes = [timed(run) for _ in range(options.repeat)]
        timings = list(measure(resident, loras, options.repeat))
        passes += [timed(run) for _ in range(options.repeat)]
        alone = [timed(products(loras)) for _ in range(2)]
        print(f"{options.checkpoint}, {options.dtype} on {options.device}, rank {options.rank}")
        report(timings, statistics.median(passes))
        print(f"{'products of 8 alone':<24}{min(alone) * 1e3:9.0f} ms   (no weight read or written)")
        if options.comfyui or (find_spec("comfy") and find_spec("comfy.model_patcher")):
            checkpoint = options.models / "checkpoints" / options.checkpoint
            times = comfyui_times(options.comfyui, checkpoint, loras, options.dtype, options.repeat)
            report(list(times), statistics.median(passes))
    if options.diffusers:
        report(list(diffusers_times(options.rank, options.repeat)), statistics.median(passes))


if __name__ == "__main__":
    main()
