"""Names of the blocks of Flux, which several families share (Black Forest Labs, 2024)."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.models.names import Row, Rows

DOUBLE, SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
"""Blocks of two streams and of one, as diffusers calls them."""


ATTENTION: Mapping[str, Row] = {
    "double_blocks.{}.img_attn.qkv": Rows(DOUBLE + "attn.to_q", DOUBLE + "attn.to_k", DOUBLE + "attn.to_v"),
    "double_blocks.{}.txt_attn.qkv": Rows(
        DOUBLE + "attn.add_q_proj", DOUBLE + "attn.add_k_proj", DOUBLE + "attn.add_v_proj"
    ),
    "double_blocks.{}.img_attn.proj": DOUBLE + "attn.to_out.0",
    "double_blocks.{}.txt_attn.proj": DOUBLE + "attn.to_add_out",
    "double_blocks.{}.img_attn.norm.query_norm.scale": DOUBLE + "attn.norm_q.weight",
    "double_blocks.{}.img_attn.norm.key_norm.scale": DOUBLE + "attn.norm_k.weight",
    "double_blocks.{}.txt_attn.norm.query_norm.scale": DOUBLE + "attn.norm_added_q.weight",
    "double_blocks.{}.txt_attn.norm.key_norm.scale": DOUBLE + "attn.norm_added_k.weight",
    "single_blocks.{}.norm.query_norm.scale": SINGLE + "attn.norm_q.weight",
    "single_blocks.{}.norm.key_norm.scale": SINGLE + "attn.norm_k.weight",
}
"""The attention of all blocks but the first layer of single ones."""

MLP: Mapping[str, Row] = {
    "double_blocks.{}.img_mlp.0": DOUBLE + "ff.net.0.proj",
    "double_blocks.{}.img_mlp.2": DOUBLE + "ff.net.2",
    "double_blocks.{}.txt_mlp.0": DOUBLE + "ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.2": DOUBLE + "ff_context.net.2",
}
"""The MLPs of double blocks that are not gated."""


def with_mlp(weight: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Rows of a fused weight: query, key and value as wide as the input, the rest the MLP's."""
    width = weight[1]
    return (width, width, width, weight[0] - 3 * width)


SINGLE_QKV = (SINGLE + "attn.to_q", SINGLE + "attn.to_k", SINGLE + "attn.to_v")
FUSED = Rows(*SINGLE_QKV, SINGLE + "proj_mlp", sizes=with_mlp)
"""The first layer of a single block: query, key and value, and the MLP's first."""
