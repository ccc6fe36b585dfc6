"""The UNet of Stable Diffusion, read from its original names and shapes.

The original code (CompVis latent-diffusion, "ldm") numbers blocks through; diffusers groups them by level.
Everything here follows from walking the numbered blocks once. Rombach et al. 2022; Podell et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from loraloom.errors import ModelFileError
from loraloom.models.family import Config, LoraFacts, LoraSign, Module, from_shapes
from loraloom.models.latent_format import LatentFormat
from loraloom.models.names import Names, Row, Shapes

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


UNET_MARKS = (
    "input_blocks.0.0.weight",
    "time_embed.0.weight",
    "middle_block.1.proj_in.weight",
    "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "out.2.weight",
)
"""What every UNet with text conditioning holds."""


def _depth(shapes: Shapes, attention: str) -> int:
    """Transformer blocks of an attention; 0 where there is none."""
    count = 0
    while f"{attention}.transformer_blocks.{count}.attn2.to_k.weight" in shapes:
        count += 1
    return count


@from_shapes("a Stable Diffusion UNet")
def read_layout(shapes: Shapes) -> UNetLayout:
    """Walk the numbered blocks; ModelFileError where they do not make a UNet."""
    _, context = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
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
            blocks[f"{block}.0"] = f"down_blocks.{number}.downsamplers.0"
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


@dataclass(frozen=True, slots=True)
class UNetNames:
    """The names of a UNet: what is called how depends on how many blocks a level has."""

    def of_native(self, shapes: Shapes) -> Names:
        return _names(read_layout(shapes).blocks.items(), "class_embedding")

    def of_module(self, shapes: Shapes) -> Names | None:
        """For a file in diffusers' layout."""
        if "down_blocks.0.resnets.0.conv1.weight" not in shapes or "conv_in.weight" not in shapes:
            return None
        told = "add_embedding" if "add_embedding.linear_1.weight" in shapes else "class_embedding"
        return _names(_blocks_of_diffusers(shapes), told)


def _names(blocks: Iterable[tuple[str, str]], told: str) -> Names:
    """blocks: (native block, diffusers block). told: what the module calls what embeds the sizes."""
    rows: dict[str, Row] = dict(_OUTSIDE)
    rows |= {f"label_emb.0.{place}": f"{told}.linear_{n}" for n, place in ((1, 0), (2, 2))}
    for ours, theirs in blocks:
        if ".resnets." in theirs:
            rows |= {f"{ours}.{native}": f"{theirs}.{module}" for native, module in _RESNET.items()}
        elif ".downsamplers." in theirs:
            rows[f"{ours}.op"] = f"{theirs}.conv"
        else:
            rows[f"{ours}.{{*}}"] = f"{theirs}.{{*}}"
    return Names(rows, also={"add_embedding.linear_{}": "class_embedding.linear_{}"}, unused=UNUSED)


def comfyui_names(path: str) -> Iterator[str]:
    """The names by which ComfyUI reads a UNet's modules, beside the native ones."""
    flat = path.replace(".", "_")
    yield "lora_unet_" + flat
    yield "lycoris_" + flat
    dotted = path.replace(".to_", ".processor.to_").removesuffix(".0") if ".to_" in path else path
    yield dotted
    yield "unet." + dotted


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


def unet_lora(
    context: int, *, deep: bool = False, kohya: Literal["module", "native"] = "native", base_version: str = ""
) -> LoraFacts:
    """context: width of the text that cross-attention reads. deep: whether a level has several blocks.
    kohya, base_version: as in `LoraFacts`."""
    signs = (
        LoraSign(r"(down|up|input|output)_blocks?_\d|mid(dle)?_block_"),
        LoraSign(r"attn2_to_[kv]$", (context,)),
        *([LoraSign(r"transformer_blocks_[1-9]")] if deep else []),
    )
    return LoraFacts(
        signs=signs,
        text_is_fixed=False,
        kohya=kohya,
        dotted="unet.",
        base_version=base_version,
        comfyui=comfyui_names,
    )


def unet_module(heads: Callable[[int], int]) -> Module:
    """The diffusers UNet; heads: channels of a level → number of attention heads."""
    return Module(
        "diffusers.models.unets.unet_2d_condition:UNet2DConditionModel", lambda shapes: _config(shapes, heads)
    )


def _config(shapes: Shapes, heads: Callable[[int], int]) -> Config:
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
    return config


def eight_heads(channels: int) -> int:
    """Stable Diffusion 1: eight heads, whatever the width."""
    return 8


def heads_of_64(channels: int) -> int:
    """Stable Diffusion 2 and later: heads of 64 channels."""
    if channels % 64:
        raise ModelFileError(f"a level of {channels} channels cannot be split into heads of 64")
    return channels // 64
