"""Time of one linear layer in every storage format, against bfloat16 and float32, on this machine.

    python benchmarks/linears.py [--rows 256] [--inputs 3072] [--outputs 3072] [--seconds 1] [--device cpu]

Everything in one process and one run, the formats in turns, so that what else the machine does falls on all
of them. Printed are the median time of a product, it as a multiple of bfloat16's, the bytes of the weight,
and the relative error of the product against float32 (of Q4_K, which is not made here, it says nothing).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.weights.formats import formats
from loraloom.weights.packed import Packed, narrowed, packed_as

FORMATS = ("fp8", "int8", "int8:convrot", "convrot_w4a4", "mxfp8", "nvfp4", "gguf:Q8_0", "gguf:Q4_K")
GGUF_BITS = {"Q8_0": 34 * 8 / 32, "Q4_K": 144 * 8 / 256}


def gguf(weight: Tensor, kind: str) -> Packed:
    """A weight of blocks; of types that the gguf package cannot make, blocks of zeros: they take as long."""
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, quantize

    try:
        stored = torch.from_numpy(quantize(weight.numpy(), GGMLQuantizationType[kind]))
    except (NotImplementedError, QuantError):
        stored = torch.zeros(len(weight), int(weight.shape[1] * GGUF_BITS[kind]) // 8, dtype=torch.uint8)
    return Packed.of("gguf", {"weight": stored}, {"format": kind}, tuple(weight.shape))


def packed(weight: Tensor, to: str) -> Packed:
    name, _, option = to.partition(":")
    if name == "gguf":
        return gguf(weight, option)
    found = packed_as(formats()[name], weight, option)
    return found if found is not None else narrowed(weight)


def products(x: Tensor, weight: Tensor, device: str) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Name → what computes the product, and the bytes of its weight."""
    wide, half = x.to(device), x.bfloat16().to(device)
    float32, bfloat16 = weight.to(device), weight.bfloat16().to(device)
    found: dict[str, tuple[Callable[[], Tensor], int]] = {
        "fp32": (lambda: F.linear(wide, float32), float32.nbytes),
        "bf16": (lambda: F.linear(half, bfloat16), bfloat16.nbytes),
    }
    for to in FORMATS:
        stored = packed(weight, to).to(torch.device(device))
        found[to] = (lambda stored=stored: stored.product(half, native=True), stored.nbytes)
        if stored.format.rounds_inputs:
            found[f"{to} widened"] = (lambda stored=stored: stored.product(half, native=False), stored.nbytes)
    return found


def measured(run: Callable[[], Tensor], device: str) -> float:
    begin = time.perf_counter()
    run()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("--rows", 256), ("--inputs", 3072), ("--outputs", 3072)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each format")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    weight = torch.randn(options.outputs, options.inputs) / options.inputs**0.5
    x = torch.randn(options.rows, options.inputs)
    wanted = F.linear(x, weight)
    candidates = products(x, weight, options.device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        errors = {
            name: float((run().float().cpu() - wanted).norm() / wanted.norm())
            for name, (run, _) in candidates.items()
        }
        end = time.perf_counter() + options.seconds * len(candidates)
        while time.perf_counter() < end:
            for name, (run, _) in candidates.items():
                times[name].append(measured(run, options.device))
    base = statistics.median(times["bf16"])
    print(f"x ({options.rows}, {options.inputs}) on {options.device}, {torch.get_num_threads()} threads")
    print(f"{'weight':22}{'time':>10}{'of bf16':>9}{'weight':>11}{'error':>9}")
    for name, (_, size) in candidates.items():
        middle = statistics.median(times[name])
        print(f"{name:22}{middle * 1e3:7.2f} ms{middle / base:9.2f}{size / 1e6:8.1f} MB{errors[name]:9.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
