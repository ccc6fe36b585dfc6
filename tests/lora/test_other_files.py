"""Files among LoRAs that are none are called what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.errors import ModelFileError
from loraloom.lora.file import read_lora

KINDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "SVDQuant model": (
        ("transformer_blocks.0.mlp_fc1.lora_down", "transformer_blocks.0.mlp_fc1.qweight",
         "transformer_blocks.0.mlp_fc1.wscales"),
        "SVDQuant",
    ),
    "SVDQuant LoRA": (
        ("transformer_blocks.0.qkv_proj.lora_down", "transformer_blocks.0.qkv_proj.lora_up"), "SVDQuant"
    ),
    "Control-LoRA": (("lora_controlnet", "input_blocks.1.0.emb_layers.1.up"), "Control-LoRA"),
    "IP-Adapter": (("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "IP-Adapter"),
    "IP-Adapter with a LoRA in it": (
        ("image_proj.norm.weight", "ip_adapter.0.to_q_lora.down.weight", "ip_adapter.0.to_q_lora.up.weight"),
        "IP-Adapter",
    ),
    "ControlNet": (("control_model.input_hint_block.0.weight",), "ControlNet"),
    "ControlNet of diffusers": (("controlnet_cond_embedding.conv_in.weight",), "ControlNet"),
    "checkpoint": (("model.diffusion_model.out.2.weight",), "checkpoint"),
    "diffusion model": (("double_blocks.0.img_attn.qkv.weight",), "diffusion model"),
    "diffusion model with norms called scale": (
        ("blocks.0.attn.wq.weight", "blocks.0.prenorm.scale"), "diffusion model"
    ),
    "VAE": (("decoder.conv_in.weight",), "VAE"),
    "text encoder": (("text_model.encoder.layers.0.mlp.fc1.weight",), "text encoder"),
    "embedding": (("emb_params",), "embedding"),
    "SDXL embedding": (("clip_l", "clip_g"), "embedding"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_instead(kind: str, tmp_path: Path) -> None:
    names, said = KINDS[kind]
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(4, 4) for name in names}, path)
    with pytest.raises(ModelFileError, match=said):
        read_lora(path)
