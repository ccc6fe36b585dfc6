"""The autoencoder of Wan 2.1 and Qwen-Image: causal over frames, of which a picture is one (2025).

Original names number the blocks of a half through; diffusers' QwenImage class keeps that in the encoder and
groups the decoder by level.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraloom.models.autoencoder import AutoencoderKind, frame_decode, frame_encode, halvings, number
from loraloom.models.known_model import Config, Module, count_blocks
from loraloom.models.names import Names, Row, Shapes
from loraloom.models.parts.wan_layout import ends, residual


@dataclass(frozen=True, slots=True)
class WanNames:
    def of_native(self, shapes: Shapes) -> Names:
        return _names(_blocks(shapes, "decoder.upsamples.{}."))

    def of_module(self, shapes: Shapes) -> Names | None:
        if "decoder.mid_block.resnets.0.norm1.gamma" not in shapes or "post_quant_conv.weight" not in shapes:
            return None
        kinds: list[bool] = []
        level = 0
        while f"decoder.up_blocks.{level}.resnets.0.conv1.weight" in shapes:
            kinds += [True] * count_blocks(shapes, f"decoder.up_blocks.{level}.resnets.{{}}.conv1.weight")
            if f"decoder.up_blocks.{level}.upsamplers.0.resample.1.weight" in shapes:
                kinds.append(False)
            level += 1
        return _names(kinds)


def _blocks(shapes: Shapes, pattern: str) -> list[bool]:
    """For each numbered block of a half, whether it is a residual one (else it changes the size)."""
    kinds: list[bool] = []
    while True:
        block = pattern.format(len(kinds))
        if f"{block}residual.2.weight" in shapes:
            kinds.append(True)
        elif f"{block}resample.1.weight" in shapes:
            kinds.append(False)
        else:
            return kinds


def _names(decoder: list[bool]) -> Names:
    rows: dict[str, Row] = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        rows.update(ends(half))
    rows.update(residual("encoder.downsamples.{}", "encoder.down_blocks.{}"))
    rows["encoder.downsamples.{}.resample.1"] = "encoder.down_blocks.{}.resample.1"
    rows["encoder.downsamples.{}.time_conv"] = "encoder.down_blocks.{}.time_conv"
    level = place = 0
    for index, is_residual in enumerate(decoder):
        ours, theirs = f"decoder.upsamples.{index}", f"decoder.up_blocks.{level}"
        if is_residual:
            rows.update(residual(ours, f"{theirs}.resnets.{place}"))
            place += 1
        else:
            rows[f"{ours}.resample.1"] = f"{theirs}.upsamplers.0.resample.1"
            rows[f"{ours}.time_conv"] = f"{theirs}.upsamplers.0.time_conv"
            level, place = level + 1, 0
    return Names(rows)


def config(shapes: Shapes) -> Config:
    encoder = _blocks(shapes, "encoder.downsamples.{}.")
    first = shapes["encoder.conv1.weight"][0]
    changes = [index for index, is_residual in enumerate(encoder) if not is_residual]
    per_level = changes[0]
    last = [index - 1 for index in (*changes, len(encoder))]
    return {
        "base_dim": first,
        "z_dim": shapes["conv2.weight"][0],
        "dim_mult": [shapes[f"encoder.downsamples.{i}.residual.6.weight"][0] // first for i in last],
        "num_res_blocks": per_level,
        "attn_scales": [],
        "temperal_downsample": [f"encoder.downsamples.{i}.time_conv.weight" in shapes for i in changes],
        "input_channels": shapes["encoder.conv1.weight"][1],
    }


AUTOENCODER = AutoencoderKind(
    name="wan",
    title="Wan 2.1 autoencoder",
    marks=(
        "encoder.downsamples.0.residual.2.weight",
        "decoder.upsamples.0.residual.2.weight",
        "conv2.weight",
    ),
    fits=lambda shapes: len(shapes["encoder.conv1.weight"]) == 5,
    module=Module("diffusers.models.autoencoders.autoencoder_kl_qwenimage:AutoencoderKLQwenImage", config),
    names=WanNames(),
    latent_channels=number("z_dim"),
    pixels=halvings("dim_mult"),
    width=number("base_dim"),
    framed=True,
    decode=frame_decode,
    encode=frame_encode,
)
