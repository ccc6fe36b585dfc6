"""The KL autoencoder of Stable Diffusion and Flux.1, read from its original names and shapes.

Original names (CompVis latent-diffusion): "decoder.up.3.block.0.conv1.weight"; files in diffusers' layout
("decoder.up_blocks.0.resnets.0.conv1.weight") are read under the original names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, Placement, Shapes, from_shapes

if TYPE_CHECKING:
    from torch import nn

_INNER = (("nin_shortcut", "conv_shortcut"),)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}

UNUSED = (
    "loss.*",  # the training discriminator, kept in original checkpoints
    "model_ema.*",
)
"""Native names that files hold and decoding and encoding do not use."""


def is_autoencoder(names: Iterable[str]) -> bool:
    """Whether native names make a complete KL autoencoder."""
    held = set(names)
    return {"decoder.conv_in.weight", "encoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"} <= held


def _levels(shapes: Shapes, half: str) -> int:
    count = 0
    while f"{half}.{count}.block.0.conv1.weight" in shapes:
        count += 1
    return count


def diffusers_name(native: str, levels: int) -> str:
    """A native parameter name in diffusers' spelling, for an autoencoder of so many levels."""
    name = native
    if match := re.match(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(weight|bias)$", name):
        half, part, kind = match.groups()
        return f"{half}.mid_block.attentions.0.{_ATTENTION.get(part, part)}.{kind}"
    if match := re.match(r"(encoder|decoder)\.mid\.block_([12])\.(.+)$", name):
        half, number, rest = match.groups()
        name = f"{half}.mid_block.resnets.{int(number) - 1}.{rest}"
    elif match := re.match(r"encoder\.down\.(\d+)\.(block\.(\d+)|downsample)\.(.+)$", name):
        level, _, block, rest = match.groups()
        place = "downsamplers.0" if block is None else f"resnets.{block}"
        name = f"encoder.down_blocks.{level}.{place}.{rest}"
    elif match := re.match(r"decoder\.up\.(\d+)\.(block\.(\d+)|upsample)\.(.+)$", name):
        level, _, block, rest = match.groups()
        place = "upsamplers.0" if block is None else f"resnets.{block}"
        name = f"decoder.up_blocks.{levels - 1 - int(level)}.{place}.{rest}"
    for old, new in _INNER:
        name = name.replace(old, new)
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)


def native_name(name: str, levels: int) -> str:
    """The inverse of `diffusers_name`; also understands the attention names of diffusers before 0.15."""
    if match := re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.([\w.]+)\.(weight|bias)$", name):
        half, part, kind = match.groups()
        back = {new: old for old, new in _ATTENTION.items()} | _OLD_ATTENTION
        return f"{half}.mid.attn_1.{back.get(part, part)}.{kind}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.+)$", name):
        half, number, rest = match.groups()
        name = f"{half}.mid.block_{int(number) + 1}.{rest}"
    elif match := re.match(r"encoder\.down_blocks\.(\d+)\.(resnets\.(\d+)|downsamplers\.0)\.(.+)$", name):
        level, _, block, rest = match.groups()
        name = f"encoder.down.{level}.{'downsample' if block is None else f'block.{block}'}.{rest}"
    elif match := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)\.(.+)$", name):
        level, _, block, rest = match.groups()
        place = "upsample" if block is None else f"block.{block}"
        name = f"decoder.up.{levels - 1 - int(level)}.{place}.{rest}"
    for old, new in _INNER:
        name = name.replace(new, old)
    return re.sub(r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out.", name)


@from_shapes("an autoencoder")
def autoencoder_blueprint(shapes: Shapes) -> Blueprint:
    """The diffusers autoencoder for these shapes; ModelFileError where they do not make one."""
    if not is_autoencoder(shapes):
        raise ModelFileError("the weights do not make an autoencoder with encoder and decoder")
    levels = _levels(shapes, "encoder.down")
    if levels == 0 or levels != _levels(shapes, "decoder.up"):
        raise ModelFileError("an autoencoder whose halves differ in depth is not supported")
    blocks = 0
    while f"encoder.down.0.block.{blocks}.conv1.weight" in shapes:
        blocks += 1
    config: dict[str, object] = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)
        ),
        "layers_per_block": blocks,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
    }

    def build() -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL(**config)  # pyright: ignore[reportArgumentType]

    placements = {diffusers_name(native, levels): Placement(native) for native in shapes}
    return Blueprint(config, build, placements, UNUSED)
