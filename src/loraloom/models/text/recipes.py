"""The ways in which families use their text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType

from loraloom.models.recipe import Recipe, Use

SD15 = Recipe(
    name="sd15",
    uses=(Use("clip_l", "l", norm_layer=True),),
    context=(("l",),),
    pooled=(("l", "projected"),),
    types=("stable_diffusion",),
    otherwise=True,
    not_for=("sd3", "hidream", "flux", "sdxl"),
)
SD20 = Recipe(
    name="sd20",
    uses=(Use("clip_h", "h", layers=(-2,), norm_layer=True),),
    context=(("h",),),
    pooled=(("h", "projected"),),
    types=("stable_diffusion",),
    otherwise=True,
)
_SDXL_L = Use("clip_l", "l", layers=(-2,))
_SDXL_G = Use("clip_g", "g", layers=(-2,))
SDXL = Recipe(
    name="sdxl",
    uses=(_SDXL_L, _SDXL_G),
    context=(("l", "g"),),
    pooled=(("g", "projected"),),
    types=("sdxl",),
)
REFINER = Recipe(
    name="refiner",
    uses=(_SDXL_G,),
    context=(("g",),),
    pooled=(("g", "projected"),),
    types=("sdxl", "stable_diffusion"),
    otherwise=True,
    not_for=("sd3", "hidream", "flux", "stable_cascade"),
)
FLUX1 = Recipe(
    name="flux",
    uses=(Use("clip_l", "l", norm_layer=True), Use("t5xxl", "t5xxl", norm_layer=True, min_length=256)),
    context=(("t5xxl",),),
    pooled=(("l", "pooled"),),
    types=("flux",),
)
SD3 = Recipe(
    name="sd3",
    uses=(
        Use("clip_l", "l", layers=(-2,), stand_in=768),
        Use("clip_g", "g", layers=(-2,), stand_in=1280),
        Use("t5xxl", "t5xxl", norm_layer=True, min_length=77, stand_in=4096),
    ),
    context=(("l", "g"), ("t5xxl",)),
    pooled=(("l", "pooled"), ("g", "projected")),
    types=("sd3",),
    width=4096,
)
CHROMA = Recipe(
    name="chroma",
    uses=(Use("t5xxl", "t5xxl", norm_layer=True, blank_is_padding=True),),
    context=(("t5xxl",),),
    types=("chroma", "pixart"),
)

USER_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"

Z_IMAGE = Recipe(
    name="z_image",
    uses=(
        Use(
            "qwen3",
            "qwen3_4b",
            ("4b",),
            template=USER_TURN,
            brackets="letters",
            layers=(-2,),
            gives_mask=True,
        ),
    ),
    context=(("qwen3_4b",),),
    types=("lumina2",),
    otherwise=True,
)
_KLEIN_USE = Use(
    "qwen3",
    "qwen3_4b",
    ("4b", "8b"),
    template=USER_TURN + NO_THOUGHT,
    brackets="letters",
    layers=(9, 18, 27),
    min_length=512,
    masks=True,
    gives_mask=True,
)
KLEIN = Recipe(
    name="flux2_klein",
    uses=(_KLEIN_USE,),
    context=(("qwen3_4b",),),
    types=("flux2", "flux"),
)
KLEIN_VL = replace(
    KLEIN,
    name="flux2_klein_vl",
    uses=(replace(_KLEIN_USE, encoder="qwen3vl", key="qwen3vl_4b"),),
    context=(("qwen3vl_4b",),),
)
FLUX2_DEV = Recipe(
    name="flux2_dev",
    uses=(
        Use(
            "mistral3",
            "mistral3_24b",
            template="[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give"
            " structured responses focusing on object relationships, object\nattribution and actions without"
            " speculation.[/SYSTEM_PROMPT][INST]{}[/INST]",
            brackets="letters",
            layers=(10, 20, 30),
            gives_mask=True,
        ),
    ),
    context=(("mistral3_24b",),),
    types=("flux2",),
    otherwise=True,
)

DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text,"
    " spatial relationships of the objects and background:<|im_end|>\n" + USER_TURN
)
ALTER = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects,"
    " background), then explain how the user's text instruction should alter or modify the image. Generate a"
    " new image that meets the user's requirements while maintaining consistency with the original input"
    " where appropriate.<|im_end|>\n" + USER_TURN
)
COMPREHEND = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n" + USER_TURN

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"

QWEN_IMAGE = Recipe(
    name="qwen_image",
    uses=(
        Use(
            "qwen25vl",
            "qwen25_7b",
            ("7b",),
            template=DESCRIBE,
            picture_template=ALTER,
            takes_whole=True,
            brackets="letters",
            cut="opening",
        ),
    ),
    context=(("qwen25_7b",),),
    types=("qwen_image",),
    otherwise=True,
    not_for=("hunyuan_image", "longcat_image", "hunyuan_video_15", "kandinsky5", "kandinsky5_image"),
    picture_text=PICTURE,
)
QWEN_IMAGE21 = Recipe(
    name="qwen_image21",
    uses=(
        Use(
            "qwen3vl",
            "qwen3vl_8b",
            ("8b",),
            template=COMPREHEND,
            takes_whole=True,
            brackets="letters",
            layers=(-1,),
            cut="system",
        ),
    ),
    context=(("qwen3vl_8b",),),
    types=("qwen_image",),
    picture_text=PICTURE,
)
KREA2 = Recipe(
    name="krea2",
    uses=(
        Use(
            "qwen3vl",
            "qwen3vl_4b",
            ("4b",),
            template=DESCRIBE,
            picture_template=USER_TURN,
            takes_whole=True,
            brackets="letters",
            layers=tuple(range(2, 36, 3)),
            cut="opening",
        ),
    ),
    context=(("qwen3vl_4b",),),
    types=("krea2",),
    picture_text=PICTURE,
)
QWEN3_VL = Recipe(
    name="qwen3_vl",
    uses=(Use("qwen3vl", "qwen3vl_4b", template=USER_TURN, takes_whole=True, brackets="letters"),),
    context=(("qwen3vl_4b",),),
    otherwise=True,
    not_for=("mage", "flux3", "fibo2", "boogu", "ideogram4", "joyimage", "minimax"),
    picture_text=PICTURE,
)
LUMINA2 = Recipe(
    name="lumina2",
    uses=(Use("gemma2", "gemma2_2b", layers=(-2,), masks=True, gives_mask=True),),
    context=(("gemma2_2b",),),
    types=("lumina2",),
    otherwise=True,
    not_for=("pixeldit",),
)
ANIMA = Recipe(
    name="anima",
    uses=(
        Use("qwen3", "qwen3_06b", ("0.6b",), brackets="split", min_length=1, gives_mask=True),
        Use("t5xxl", "t5xxl", tokens_only=True),
    ),
    context=(("qwen3_06b",),),
    types=("stable_diffusion",),
    otherwise=True,
    not_for=("ace",),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            SD15,
            SD20,
            SDXL,
            REFINER,
            FLUX1,
            SD3,
            CHROMA,
            Z_IMAGE,
            KLEIN,
            KLEIN_VL,
            FLUX2_DEV,
            QWEN_IMAGE,
            QWEN_IMAGE21,
            KREA2,
            QWEN3_VL,
            LUMINA2,
            ANIMA,
        )
    }
)
"""The recipes of this file by name, in the order in which they are tried."""


@cache
def known_recipes() -> Mapping[str, Recipe]:
    """`TextEncoders.kind` → its recipe: those of this file, and of families that bring their own."""
    from loraloom.models.recognition import families  # families are made of the recipes above

    return MappingProxyType({**RECIPES, **{family.prompt.name: family.prompt for family in families()}})
