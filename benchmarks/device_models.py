"""Model files for `device.py`: the names, types and shapes of published files, with random values.

At full size they come from the headers in tests/data/headers; narrow ones from the tests' shapes. Values are
drawn on the device and written by several threads, so that 24 GB take as long as the disk does.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from tests import tiny_models as tiny
from tests.published import Fixture
from torch import Tensor

from loraloom.weights.dtypes import DTYPES

Tensors: TypeAlias = "Mapping[str, tuple[str, tuple[int, ...]]]"
"""Name → type as files of safetensors spell it, and shape."""

WRITERS = 6
SPARE = 1 << 30
"""Bytes that are to stay free; for them, models that cases before were about leave."""

RANK = 4
PICTURE_LORAS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "proj.weight")


@dataclass(frozen=True)
class Made:
    """place: below the folder of models. header: the published file. stored: its matrices' type here, where
    another is wanted. narrow: the shapes of a small one."""

    place: str
    header: str
    narrow: Callable[[], Mapping[str, tuple[int, ...]]]
    stored: str = ""
    seed: str = ""

    def tensors(self, is_narrow: bool) -> Tensors:
        if is_narrow:
            kind = self.stored or "F16"
            return {name: (self._kind(kind, shape), shape) for name, shape in self.narrow().items()}
        return {
            name: (self._kind(kind, shape) if kind in ("F32", "F16", "BF16") else kind, shape)
            for name, (kind, shape) in Fixture.named(self.header).tensors.items()
        }

    def _kind(self, kind: str, shape: tuple[int, ...]) -> str:
        if self.stored == "F8_E4M3":
            return self.stored if len(shape) == 2 else "BF16"
        return self.stored or kind


def _sd15() -> tiny.Shapes:
    return (
        tiny.prefixed("cond_stage_model.transformer.", tiny.clip_shapes(width=64))
        | tiny.prefixed("first_stage_model.", tiny.autoencoder_shapes())
        | tiny.prefixed("model.diffusion_model.", tiny.unet_shapes(context=64))
    )


def _sdxl() -> tiny.Shapes:
    return (
        tiny.prefixed("conditioner.embedders.0.transformer.", tiny.clip_shapes(width=64))
        | tiny.prefixed("conditioner.embedders.1.model.", tiny.open_clip_shapes(width=128))
        | tiny.prefixed("first_stage_model.", tiny.autoencoder_shapes())
        | tiny.prefixed("model.diffusion_model.", tiny.sdxl_unet_shapes())
    )


def _flux() -> tiny.Shapes:
    return tiny.flux_shapes(double=2, single=4)


def _lora(shapes: Callable[[], tiny.Shapes], prefix: str) -> tiny.Shapes:
    """kohya's names for the matrices of a narrow model's attention, by the names of the original."""
    found: tiny.Shapes = {}
    for name, shape in shapes().items():
        if name.endswith(PICTURE_LORAS) and len(shape) == 2 and name.startswith(prefix):
            module = "lora_unet_" + name.removeprefix(prefix).removesuffix(".weight").replace(".", "_")
            found[f"{module}.lora_down.weight"] = (RANK, shape[1])
            found[f"{module}.lora_up.weight"] = (shape[0], RANK)
            found[f"{module}.alpha"] = ()
    return found


UNET = "model.diffusion_model."
_BESIDE_FLUX = (
    Made("text_encoders/clip_l.safetensors", "clip_l", tiny.clip_shapes),
    Made("text_encoders/t5xxl.safetensors", "t5xxl_fp8", tiny.t5_shapes),
    Made("vae/flux.safetensors", "flux1_ae", partial(tiny.autoencoder_shapes, latent=16, quant=False)),
    *(
        Made(f"loras/flux_{seed}.safetensors", "flux1_kohya", partial(_lora, _flux, ""), seed=seed)
        for seed in "ab"
    ),
)
MODELS: Mapping[str, tuple[Made, ...]] = {
    "sd15": (
        Made("checkpoints/sd15.safetensors", "sd15", _sd15, "F16"),
        *(
            Made(f"loras/sd15_{seed}.safetensors", "lcm_lora_sd15", partial(_lora, _sd15, UNET), seed=seed)
            for seed in "ab"
        ),
    ),
    "sdxl": (
        Made("checkpoints/sdxl.safetensors", "sdxl", _sdxl),
        *(
            Made(f"loras/sdxl_{seed}.safetensors", "tcd_lora_sdxl", partial(_lora, _sdxl, UNET), seed=seed)
            for seed in "ab"
        ),
    ),
    "flux_fp8": (
        Made("diffusion_models/flux_fp8.safetensors", "flux1_dev", _flux, "F8_E4M3"),
        *_BESIDE_FLUX,
    ),
    "flux_bf16": (Made("diffusion_models/flux_bf16.safetensors", "flux1_dev", _flux, "BF16"), *_BESIDE_FLUX),
}
"""What each model needs; files of the same name are the same."""


def make(folder: Path, name: str, device: torch.device, *, is_narrow: bool) -> tuple[float, int]:
    """Write what is not there yet of a model's files. → (seconds, bytes written)"""
    begun, written = time.perf_counter(), 0
    for made in MODELS[name]:
        path = folder / made.place
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = made.tensors(is_narrow)
            if shutil.disk_usage(path.parent).free < SPARE + size_of(tensors):
                for other in path.parent.iterdir():
                    other.unlink()
            written += write(path, tensors, device, made.seed)
    return time.perf_counter() - begun, written


def size_of(tensors: Tensors) -> int:
    return sum(math.prod(shape) * DTYPES[kind].itemsize for kind, shape in tensors.values())


def write(path: Path, tensors: Tensors, device: torch.device, seed: str) -> int:
    """A file of safetensors with random values; its bytes."""
    header: dict[str, object] = {}
    end = 0
    for name, (kind, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * DTYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(start + end)

        def put(name: str) -> None:
            kind, shape = tensors[name]
            begin = start + int(header[name]["data_offsets"][0])  # pyright: ignore[reportIndexIssue, reportUnknownArgumentType]
            made = values(name, shape, DTYPES[kind], device, seed)
            with unfinished.open("r+b") as own:  # a place of its own in the file
                own.seek(begin)
                own.write(made.reshape(-1).view(torch.uint8).numpy().data)

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(put, tensors))
    unfinished.rename(path)
    return start + end


def values(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: str) -> Tensor:
    """Norms near one, biases small, the rest of variance 1 / inputs; on the CPU."""
    if not dtype.is_floating_point:
        return torch.arange(math.prod(shape), dtype=dtype).reshape(shape)
    if name.endswith(".alpha"):
        return torch.tensor(float(RANK), dtype=dtype)
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    drawn = torch.randn(shape, generator=generator, device=device)
    if len(shape) < 2:
        is_gain = name.endswith((".weight", ".scale"))
        drawn = drawn.mul_(0.1).add_(1) if is_gain else drawn.mul_(0.02)
    elif any(part in name for part in ("embedding", "embed_tokens", "shared")):
        drawn = drawn.mul_(0.5)
    else:
        drawn = drawn.div_(math.sqrt(math.prod(shape[1:])))
        drawn = drawn.mul_(0.2) if ".lora_up." in name else drawn
    return drawn.to(dtype).cpu()
