"""Writes the files that `examples/lora-tutorial.md` names, narrow and with random weights.

usage: python -m tests.demo_models DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tests.tiny_models import (
    flux_shapes,
    lora,
    unet_shapes,
    write_clip_l,
    write_flux,
    write_sd15,
    write_t5,
    write_vae,
)

TRIGGER = "pixel_art"


def write_demo_models(root: Path) -> None:
    """A ComfyUI models folder with what both workflows of the page name, LoRAs included."""
    write_sd15(root / "checkpoints/v1-5-pruned-emaonly-fp16.safetensors")
    write_vae(root / "vae/vae-ft-mse-840000-ema-pruned.safetensors")
    write_flux(root / "diffusion_models/Flux/flux1-dev-fp8.safetensors", dtype=torch.float8_e4m3fn)
    write_clip_l(root / "text_encoders/clip_l.safetensors")
    write_t5(root / "text_encoders/t5xxl_fp8_e4m3fn.safetensors", dtype=torch.float8_e4m3fn)
    write_vae(root / "vae/ae.safetensors", latent=16)
    _save(
        root / "loras/1.5/1.5-dpo-LoRA.safetensors",
        demo_lora(),
        {"modelspec.trigger_phrase": TRIGGER, "ss_base_model_version": "sd_v1"},
    )
    _save(root / "loras/Flux.1/AWPortrait-FL-lora.safetensors", demo_flux_lora(), {})


def demo_flux_lora() -> dict[str, Tensor]:
    """Kohya names for every linear layer of the blocks of a narrow Flux.1 transformer."""
    modules = [
        ("lora_unet_" + name.removesuffix(".weight").replace(".", "_"), shape)
        for name, shape in flux_shapes(context=64, pooled=64).items()
        if "blocks." in name and name.endswith(".weight") and len(shape) == 2
    ]
    return lora(modules)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)


def demo_lora() -> dict[str, Tensor]:
    """Kohya names for every attention projection of the UNet, and for the text encoder's."""
    from loraloom.models.families.sd15.family import FAMILY

    shapes = unet_shapes()
    modules = [
        ("lora_unet_" + path.replace(".", "_"), shapes[target.weight])
        for path, target in FAMILY.lora_aliases(shapes).items()
        if ".attn" in path
    ]
    text = "lora_te_text_model_encoder_layers_{}_self_attn_{}_proj"
    modules += [(text.format(layer, name), (64, 64)) for layer in range(2) for name in ("q", "k", "v", "out")]
    return lora(modules, size=0.6)


if __name__ == "__main__":
    write_demo_models(Path(sys.argv[1]))
