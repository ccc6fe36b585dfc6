"""Writes the files that `examples/lora-tutorial.md` names, narrow and with random weights.

usage: python -m tests.demo_models DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tests.tiny_models import lora, unet_shapes, write_sd15, write_vae

TRIGGER = "pixel_art"


def write_demo_models(root: Path) -> None:
    """A ComfyUI models folder with a checkpoint, a LoRA for its UNet and text encoder, and a VAE."""
    write_sd15(root / "checkpoints/v1-5-pruned-emaonly-fp16.safetensors")
    write_vae(root / "vae/vae-ft-mse-840000-ema-pruned.safetensors")
    path = root / "loras/1.5/1.5-dpo-LoRA.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(demo_lora(), path, {"modelspec.trigger_phrase": TRIGGER, "ss_base_model_version": "sd_v1"})


def demo_lora() -> dict[str, Tensor]:
    """Kohya names for every attention projection of the UNet, and for the text encoder's."""
    from loraloom.models.families.sd15 import FAMILY

    shapes = unet_shapes()
    modules = [
        ("lora_unet_" + path.replace(".", "_"), shapes[target.weight])
        for path, target in FAMILY.lora_aliases(shapes)
        if ".attn" in path
    ]
    text = "lora_te_text_model_encoder_layers_{}_self_attn_{}_proj"
    modules += [(text.format(layer, name), (64, 64)) for layer in range(2) for name in ("q", "k", "v", "out")]
    return lora(modules, size=0.6)


if __name__ == "__main__":
    write_demo_models(Path(sys.argv[1]))
