"""Flux.1's transformer, read from its original names and shapes (Black Forest Labs, 2024).

The original fuses query, key and value (and, in single blocks, the first layer of the MLP) into one
layer; diffusers keeps them apart. The last modulation has scale and shift in the other order there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, LatentFormat, Placement, Regrouping, Shapes, from_shapes
from loraloom.weights.patch import Rows, Target

if TYPE_CHECKING:
    from torch import nn

LATENT = LatentFormat(
    name="flux",
    channels=16,
    scale=0.3611,
    shift=0.1159,
    tiny="taef1",
    rgb=(
        (-0.0346, 0.0244, 0.0681),
        (0.0034, 0.0210, 0.0687),
        (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617),
        (0.0859, 0.0721, 0.0329),
        (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915),
        (-0.0236, -0.0185, -0.0259),
        (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421),
        (-0.0515, 0.0201, 0.0011),
        (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749),
        (-0.1264, -0.0522, -0.1103),
        (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    rgb_bias=(-0.0329, -0.0718, -0.0851),
)

_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}


def is_flux(shapes: Shapes) -> bool:
    """Whether weights are a Flux.1 transformer, by landmarks (Chroma and Flux.2 have no vector_in)."""
    return {
        "img_in.weight",
        "vector_in.in_layer.weight",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "single_blocks.0.linear1.weight",
        "final_layer.adaLN_modulation.1.weight",
    } <= shapes.keys()


def _count(shapes: Shapes, pattern: str) -> int:
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count


def modules(shapes: Shapes) -> Iterator[tuple[str, Target]]:
    """Every module of the diffusers transformer with a weight → the native weight, and its rows."""
    width = shapes["img_in.weight"][0]
    for native, module in _OUTSIDE.items():
        yield module, Target(f"{native}.weight")
    yield "norm_out.linear", Target("final_layer.adaLN_modulation.1.weight", swapped=True)
    for number in range(_count(shapes, "double_blocks.{}.img_attn.qkv.weight")):
        ours, theirs = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        for native, module in _DOUBLE.items():
            yield theirs + module, Target(f"{ours}{native}.weight")
        for native, split in _DOUBLE_FUSED.items():
            for place, module in enumerate(split):
                yield theirs + module, Target(f"{ours}{native}.weight", (place * width, (place + 1) * width))
        for native, module in _DOUBLE_NORMS.items():
            yield theirs + module, Target(f"{ours}{native}.scale")
    for number in range(_count(shapes, "single_blocks.{}.linear1.weight")):
        ours, theirs = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        for native, module in _SINGLE.items():
            yield theirs + module, Target(f"{ours}{native}.weight")
        for place, module in enumerate(("attn.to_q", "attn.to_k", "attn.to_v")):
            yield theirs + module, Target(f"{ours}linear1.weight", (place * width, (place + 1) * width))
        end = shapes[f"{ours}linear1.weight"][0]
        yield theirs + "proj_mlp", Target(f"{ours}linear1.weight", (3 * width, end))
        for native, module in _SINGLE_NORMS.items():
            yield theirs + module, Target(f"{ours}{native}.scale")


def from_diffusers(shapes: Shapes) -> Regrouping | None:
    """The native weights of a transformer in diffusers' layout; None where it is none."""
    if (
        not {"x_embedder.weight", "transformer_blocks.0.attn.add_q_proj.weight", "norm_out.linear.weight"}
        <= shapes.keys()
    ):
        return None
    width = shapes["x_embedder.weight"][0]
    like: dict[str, tuple[int, ...]] = {"img_in.weight": (width,)}
    for number in range(_count(shapes, "transformer_blocks.{}.attn.to_q.weight")):
        like[f"double_blocks.{number}.img_attn.qkv.weight"] = (3 * width,)
    for number in range(_count(shapes, "single_transformer_blocks.{}.attn.to_q.weight")):
        mlp = shapes[f"single_transformer_blocks.{number}.proj_mlp.weight"][0]
        like[f"single_blocks.{number}.linear1.weight"] = (3 * width + mlp,)
    found: dict[str, list[tuple[str, Rows]]] = {}
    for module, target in modules(like):  # fused layers come in the order of their rows
        half = shapes["norm_out.linear.weight"][0] // 2
        rows: tuple[Rows, ...] = ((half, 2 * half), (0, half)) if target.swapped else (None,)
        for parameter in ("weight", "bias"):
            if f"{module}.{parameter}" in shapes:
                native = (
                    target.weight.removesuffix("weight") + parameter if parameter == "bias" else target.weight
                )
                found.setdefault(native, []).extend((f"{module}.{parameter}", part) for part in rows)
    return {native: tuple(pieces) for native, pieces in found.items()}


@from_shapes("a Flux.1 transformer")
def flux_blueprint(shapes: Shapes) -> Blueprint:
    """The diffusers transformer for these shapes."""
    if not is_flux(shapes):
        raise ModelFileError("the weights do not make a Flux.1 transformer: layers are missing")
    width = shapes["img_in.weight"][0]
    (head,) = shapes["double_blocks.0.img_attn.norm.key_norm.scale"]
    if width % head or head % 16:
        raise ModelFileError(f"a Flux.1 transformer of width {width} cannot have heads of {head}")
    config: dict[str, object] = {
        "in_channels": shapes["img_in.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": _count(shapes, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": _count(shapes, "single_blocks.{}.linear1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": (head // 8, head // 16 * 7, head // 16 * 7),
    }

    def build() -> nn.Module:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        return FluxTransformer2DModel(**config)  # pyright: ignore[reportArgumentType]

    return Blueprint(config, build, dict(_placements(shapes)), UNUSED)


UNUSED: tuple[str, ...] = ()
"""Native names that files hold and the network does not use."""


def _placements(shapes: Shapes) -> Iterator[tuple[str, Placement]]:
    for module, target in modules(shapes):
        rows = () if target.rows is None else (target.rows,)
        if target.swapped:
            half = shapes[target.weight][0] // 2 if target.weight in shapes else 0
            rows = ((half, 2 * half), (0, half))
        yield f"{module}.weight", Placement(target.weight, rows)
        if target.weight.endswith(".weight"):
            yield f"{module}.bias", Placement(target.weight.removesuffix("weight") + "bias", rows)
