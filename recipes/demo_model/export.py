"""The trained networks as one checkpoint in Stable Diffusion 1.5's file format, fp16, with metadata."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save
from state import write_tensors
from torch import Tensor

from loraloom.models.autoencoders.kl import AUTOENCODER as KL
from loraloom.models.text.clip import ClipText

RESNETS = 2
"""Levels and resnets per level of Stable Diffusion's UNet."""
METADATA = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    "modelspec.title": "Loraloom demo",
    "modelspec.description": "Draws 119 things as emoji in two styles, 192x192. Trained from scratch.",
    "modelspec.author": "The Loraloom authors",
    "modelspec.license": "Apache-2.0",
    "modelspec.resolution": "192x192",
    "modelspec.prediction_type": "epsilon",
}

_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_name(name: str) -> str:
    """A parameter of diffusers' UNet under its original (CompVis) name."""
    path, _, kind = name.rpartition(".")
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{kind}"
    side, block, part, index, inner = _parts(name)
    if side == "mid":
        place = f"middle_block.{1 if part == 'attentions' else 2 * index}"
    elif part == "downsamplers":
        return f"input_blocks.{3 * (block + 1)}.0.op.{kind}"
    elif part == "upsamplers":
        number = 3 * block + RESNETS
        return f"output_blocks.{number}.{2 if block else 1}.conv.{kind}"
    else:
        number = 3 * block + index + (1 if side == "down" else 0)
        place = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(part == 'attentions')}"
    if part == "resnets":
        inner, _, kind = inner.rpartition(".")
        return f"{place}.{_RESNET[inner]}.{kind}"
    return f"{place}.{inner}"


def _parts(name: str) -> tuple[str, int, str, int, str]:
    """Side, number of the block, kind of part, its number, and the rest of a name within a block."""
    match = re.match(r"(down|mid|up)_blocks?(?:\.(\d))?\.(resnets|attentions|\w+samplers)\.(\d)\.(.+)$", name)
    if match is None:
        raise ValueError(f"not a parameter of a Stable Diffusion UNet: {name}")
    side, block, part, index, inner = match.groups()
    return side, int(block or 0), part, int(index), inner


def checkpoint(unet: UNet2DConditionModel, text: ClipText, vae: AutoencoderKL) -> dict[str, Tensor]:
    """All weights by their names in a Stable Diffusion 1.5 checkpoint, fp16."""
    found = {f"model.diffusion_model.{unet_name(k)}": v for k, v in unet.state_dict().items()}
    found |= {f"cond_stage_model.transformer.{k}": v for k, v in text.state_dict().items()}
    state = vae.state_dict()
    table = KL.names.of_module({name: tuple(value.shape) for name, value in state.items()})
    if table is None:
        raise ValueError("the autoencoder is not in diffusers' layout")
    for name, value in state.items():
        native = f"first_stage_model.{table.origin(name)[0]}"
        is_projection = ".mid.attn_1." in native and native.endswith("weight") and ".norm." not in native
        found[native] = value[..., None, None] if is_projection else value
    return {name: value.to(torch.float16).contiguous() for name, value in found.items()}


def export(
    path: Path, unet: UNet2DConditionModel, text: ClipText, vae: AutoencoderKL, told: dict[str, str]
) -> None:
    """Write the checkpoint; its metadata are `told` and the hash of the weights."""
    tensors = checkpoint(unet, text, vae)
    digest = hashlib.sha256(save(tensors)).hexdigest()
    write_tensors(path, tensors, METADATA | told | {"modelspec.hash_sha256": f"0x{digest}"})
