"""The KL autoencoder of Stable Diffusion and its successors, read from its original names and shapes.

Original names (CompVis latent-diffusion): "decoder.up.3.block.0.conv1.weight"; diffusers numbers the levels
of the decoder the other way round ("decoder.up_blocks.0.resnets.0.conv1.weight").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.errors import ModelFileError
from loraloom.models.known_model import Config, count_blocks
from loraloom.models.names import Names, Row, Shapes

KL_MARKS = ("decoder.conv_in.weight", "encoder.conv_in.weight", "decoder.mid.block_1.conv1.weight")

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = _ATTENTION | {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}
"""diffusers' names of today, and before 0.15."""

UNUSED = (
    "loss.*",  # the training discriminator, kept in original checkpoints
    "model_ema.*",
    "bn.num_batches_tracked",
)


@dataclass(frozen=True, slots=True)
class KlNames:
    """further: rows beside those of encoder and decoder."""

    further: tuple[tuple[str, str], ...] = ()

    def of_native(self, shapes: Shapes) -> Names:
        return self._table(count_blocks(shapes, "decoder.up.{}.block.0.conv1.weight"), _ATTENTION)

    def of_module(self, shapes: Shapes) -> Names | None:
        levels = count_blocks(shapes, "decoder.up_blocks.{}.resnets.0.conv1.weight")
        is_old = "decoder.mid_block.attentions.0.query.weight" in shapes
        return self._table(levels, _OLD_ATTENTION if is_old else _ATTENTION) if levels else None

    def _table(self, levels: int, attention: Mapping[str, str]) -> Names:
        rows: dict[str, Row] = {
            "encoder.conv_in": "encoder.conv_in",
            "encoder.conv_out": "encoder.conv_out",
            "decoder.conv_in": "decoder.conv_in",
            "decoder.conv_out": "decoder.conv_out",
            "quant_conv": "quant_conv",
            "post_quant_conv": "post_quant_conv",
            "encoder.quant_conv": "quant_conv",  # as Black Forest Labs write them
            "decoder.post_quant_conv": "post_quant_conv",
            "{}.norm_out": "{}.conv_norm_out",
            "{}.mid.block_1.{}": "{}.mid_block.resnets.0.{}",
            "{}.mid.block_2.{}": "{}.mid_block.resnets.1.{}",
            "encoder.down.{}.block.{}.nin_shortcut": "encoder.down_blocks.{}.resnets.{}.conv_shortcut",
            "encoder.down.{}.block.{}.{}": "encoder.down_blocks.{}.resnets.{}.{}",
            "encoder.down.{}.downsample.conv": "encoder.down_blocks.{}.downsamplers.0.conv",
        }
        for native, module in attention.items():
            rows[f"{{}}.mid.attn_1.{native}"] = f"{{}}.mid_block.attentions.0.{module}"
        for level in range(levels):
            ours, theirs = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
            rows[f"{ours}.block.{{}}.nin_shortcut"] = f"{theirs}.resnets.{{}}.conv_shortcut"
            rows[f"{ours}.block.{{}}.{{}}"] = f"{theirs}.resnets.{{}}.{{}}"
            rows[f"{ours}.upsample.conv"] = f"{theirs}.upsamplers.0.conv"
        return Names(rows | dict(self.further), unused=UNUSED)


def kl_config(shapes: Shapes) -> Config:
    """The arguments of diffusers' AutoencoderKL."""
    levels = count_blocks(shapes, "encoder.down.{}.block.0.conv1.weight")
    if levels == 0 or levels != count_blocks(shapes, "decoder.up.{}.block.0.conv1.weight"):
        raise ModelFileError("an autoencoder whose halves differ in depth is not supported")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths(shapes, "encoder.down", levels),
        "layers_per_block": count_blocks(shapes, "encoder.down.0.block.{}.conv1.weight"),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": any(f"{half}quant_conv.weight" in shapes for half in ("", "encoder.")),
        "use_post_quant_conv": any(f"{half}post_quant_conv.weight" in shapes for half in ("", "decoder.")),
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
    }


def widths(shapes: Shapes, half: str, levels: int) -> tuple[int, ...]:
    """Channels of each level of a half ("encoder.down", "decoder.up")."""
    return tuple(shapes[f"{half}.{level}.block.0.conv1.weight"][0] for level in range(levels))
