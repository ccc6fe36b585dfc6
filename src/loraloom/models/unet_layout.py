"""The UNet of Stable Diffusion, read from its original names and shapes.

The original code (CompVis latent-diffusion, "ldm") numbers blocks through; diffusers groups them by level.
Everything here follows from walking the numbered blocks once. Rombach et al. 2022; Podell et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, LatentFormat, Placement, Regrouping, Shapes, from_shapes
from loraloom.weights.patch import Rows, Target

if TYPE_CHECKING:
    from torch import nn

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "class_embedding.linear_1",
    "label_emb.0.2": "class_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

SD_LATENT = LatentFormat(
    name="sd",
    channels=4,
    scale=0.18215,
    tiny="taesd",
    rgb=(
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    ),
)
"""Latents of Stable Diffusion 1 and 2."""

SDXL_LATENT = LatentFormat(
    name="sdxl",
    channels=4,
    scale=0.13025,
    tiny="taesdxl",
    rgb=(
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    rgb_bias=(0.1084, -0.0175, -0.0011),
)

UNUSED = ("v_pred", "ztsnr", "edm_vpred.*", "denoiser.*")
"""Native names that files hold as marks of how a model was trained."""


@dataclass(frozen=True, slots=True)
class UNetLayout:
    """What the names and shapes of a UNet say of it.

    channels, depths: per level, the channels and the number of transformer blocks in each attention.
    resnets: resnets per level on the way down. blocks: ldm block name → diffusers block name.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    resnets: int
    context: int
    linear_projection: bool
    label: int | None
    blocks: Mapping[str, str]


def is_unet(shapes: Shapes) -> bool:
    """Whether weights are a Stable Diffusion UNet with text conditioning, by its landmarks."""
    landmarks = (
        "input_blocks.0.0.weight",
        "time_embed.0.weight",
        "middle_block.1.proj_in.weight",
        "out.2.weight",
    )
    return all(name in shapes for name in landmarks) and _context(shapes) is not None


def _context(shapes: Shapes) -> int | None:
    shape = shapes.get("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    return None if shape is None or len(shape) != 2 else shape[1]


def _depth(shapes: Shapes, attention: str) -> int:
    """Transformer blocks of an attention; 0 where there is none."""
    count = 0
    while f"{attention}.transformer_blocks.{count}.attn2.to_k.weight" in shapes:
        count += 1
    return count


@from_shapes("a Stable Diffusion UNet")
def read_layout(shapes: Shapes) -> UNetLayout:
    """Walk the numbered blocks; ModelFileError where they do not make a UNet."""
    context = _context(shapes)
    if not is_unet(shapes) or context is None:
        raise ModelFileError("the weights do not make a Stable Diffusion UNet: blocks are missing")
    blocks, levels = _walk_down(shapes)
    channels = tuple(level.channels for level in levels)
    if len({level.resnets for level in levels}) != 1:
        raise ModelFileError("a UNet with a different number of resnets per level is not supported")
    blocks.update({"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0"})
    blocks["middle_block.2"] = "mid_block.resnets.1"
    blocks.update(_walk_up(shapes, levels))
    label = shapes.get("label_emb.0.0.weight")
    return UNetLayout(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        channels=channels,
        depths=tuple(level.depth for level in levels),
        middle_depth=_depth(shapes, "middle_block.1"),
        resnets=levels[0].resnets,
        context=context,
        linear_projection=len(shapes["middle_block.1.proj_in.weight"]) == 2,
        label=None if label is None else label[1],
        blocks=blocks,
    )


@dataclass(slots=True)
class _Level:
    channels: int = 0
    resnets: int = 0
    depth: int = 0


def _walk_down(shapes: Shapes) -> tuple[dict[str, str], list[_Level]]:
    blocks: dict[str, str] = {}
    levels = [_Level()]
    index = 1
    while True:
        block, level, number = f"input_blocks.{index}", levels[-1], len(levels) - 1
        if f"{block}.0.op.weight" in shapes:
            blocks[f"{block}.0"] = f"down_blocks.{number}.downsamplers.0.conv"
            levels.append(_Level())
        elif f"{block}.0.in_layers.2.weight" in shapes:
            blocks[f"{block}.0"] = f"down_blocks.{number}.resnets.{level.resnets}"
            level.channels = shapes[f"{block}.0.in_layers.2.weight"][0]
            level.depth = _depth(shapes, f"{block}.1")
            if level.depth:
                blocks[f"{block}.1"] = f"down_blocks.{number}.attentions.{level.resnets}"
            level.resnets += 1
        else:
            return blocks, levels
        index += 1


def _walk_up(shapes: Shapes, levels: list[_Level]) -> Iterator[tuple[str, str]]:
    index = 0
    for number, level in enumerate(reversed(levels)):
        for resnet in range(level.resnets + 1):
            block = f"output_blocks.{index}"
            yield f"{block}.0", f"up_blocks.{number}.resnets.{resnet}"
            if level.depth:
                yield f"{block}.1", f"up_blocks.{number}.attentions.{resnet}"
            for place in (1, 2):
                if f"{block}.{place}.conv.weight" in shapes:
                    yield f"{block}.{place}", f"up_blocks.{number}.upsamplers.0"
            index += 1


def diffusers_name(layout: UNetLayout, native: str) -> str | None:
    """A native parameter or module name in diffusers' spelling; None for what is not part of the network."""
    path, dot, parameter = native.rpartition(".")
    if path in _OUTSIDE:
        return _OUTSIDE[path] + dot + parameter
    parts = native.split(".")
    size = 2 if parts[0] == "middle_block" else 3
    block = layout.blocks.get(".".join(parts[:size]))
    if block is None:
        return None
    inner = ".".join(parts[size:])
    if ".resnets." in block:
        old, dot, parameter = inner.rpartition(".")
        return f"{block}.{_RESNET[old]}.{parameter}" if old in _RESNET else None
    if block.endswith(".downsamplers.0.conv"):
        return block + inner.removeprefix("op")
    return f"{block}.{inner}"


def diffusers_names(shapes: Shapes) -> Iterable[tuple[str, Target]]:
    """Module path in diffusers → native weight, for every module."""
    layout = read_layout(shapes)
    for native in shapes:
        name = diffusers_name(layout, native)
        if name is None or not native.endswith(".weight"):
            continue
        path = name.removesuffix(".weight")
        yield path, Target(native)
        if path.startswith("class_embedding."):
            yield path.replace("class_embedding.", "add_embedding."), Target(native)


def from_diffusers(shapes: Shapes) -> Regrouping | None:
    """The native names of a UNet in diffusers' layout; None where it is none."""
    if "down_blocks.0.resnets.0.conv1.weight" not in shapes or "conv_in.weight" not in shapes:
        return None
    blocks = {theirs: ours for ours, theirs in _blocks_of_diffusers(shapes)}
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    outside.update({f"add_embedding.linear_{n}": f"label_emb.0.{2 * n - 2}" for n in (1, 2)})
    resnet = {theirs: ours for ours, theirs in _RESNET.items()}
    found: dict[str, tuple[tuple[str, Rows], ...]] = {}
    for name in shapes:
        path, _, parameter = name.rpartition(".")
        parts = path.split(".")
        size = 3 if parts[0] == "mid_block" else 4
        block, inner = blocks.get(".".join(parts[:size])), ".".join(parts[size:])
        if path in outside:
            native = outside[path]
        elif block is None:
            native = path
        elif parts[size - 2] == "downsamplers":
            native = f"{block}.op"
        else:
            inner = resnet.get(inner, inner) if parts[size - 2] == "resnets" else inner
            native = f"{block}.{inner}"
        found[f"{native}.{parameter}"] = ((name, None),)
    return found


def _blocks_of_diffusers(shapes: Shapes) -> Iterator[tuple[str, str]]:
    """(native block, diffusers block), numbered through as the original code does."""
    yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.1", "mid_block.attentions.0"))
    yield "middle_block.2", "mid_block.resnets.1"
    for ways, ours, sampler, last in (
        ("down_blocks", "input_blocks", "downsamplers", "conv.weight"),
        ("up_blocks", "output_blocks", "upsamplers", "conv.weight"),
    ):
        index = 1 if ours == "input_blocks" else 0
        level = 0
        while f"{ways}.{level}.resnets.0.conv1.weight" in shapes:
            resnet, place = 0, 1
            while f"{ways}.{level}.resnets.{resnet}.conv1.weight" in shapes:
                yield f"{ours}.{index}.0", f"{ways}.{level}.resnets.{resnet}"
                if f"{ways}.{level}.attentions.{resnet}.proj_in.weight" in shapes:
                    yield f"{ours}.{index}.1", f"{ways}.{level}.attentions.{resnet}"
                    place = 2
                resnet, index = resnet + 1, index + 1
            if f"{ways}.{level}.{sampler}.0.{last}" in shapes:
                block = f"{ours}.{index}.0" if ours == "input_blocks" else f"{ours}.{index - 1}.{place}"
                yield block, f"{ways}.{level}.{sampler}.0"
                index += ours == "input_blocks"
            level += 1


@from_shapes("a Stable Diffusion UNet")
def unet_blueprint(shapes: Shapes, heads: Callable[[int], int]) -> Blueprint:
    """The diffusers UNet for these shapes; heads: channels of a level → number of attention heads."""
    layout = read_layout(shapes)
    if layout.depths[-1] not in (0, layout.middle_depth):
        raise ModelFileError("a UNet whose middle is deeper than its last level is not supported")
    cross = [depth > 0 for depth in layout.depths]
    config: dict[str, object] = {
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "block_out_channels": layout.channels,
        "layers_per_block": layout.resnets,
        "down_block_types": tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross),
        "up_block_types": tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)),
        "transformer_layers_per_block": (*(d or 1 for d in layout.depths[:-1]), layout.middle_depth),
        "attention_head_dim": tuple(heads(channels) for channels in layout.channels),
        "cross_attention_dim": layout.context,
        "use_linear_projection": layout.linear_projection,
    }
    if layout.label is not None:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = layout.label

    def build() -> nn.Module:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel(**config)  # pyright: ignore[reportArgumentType]

    placements = {
        name: Placement(native) for native in shapes if (name := diffusers_name(layout, native)) is not None
    }
    return Blueprint(config, build, placements, UNUSED)


def eight_heads(channels: int) -> int:
    """Stable Diffusion 1: eight heads, whatever the width."""
    return 8


def heads_of_64(channels: int) -> int:
    """Stable Diffusion 2 and later: heads of 64 channels."""
    if channels % 64:
        raise ModelFileError(f"a level of {channels} channels cannot be split into heads of 64")
    return channels // 64
