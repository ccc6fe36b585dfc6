"""The ways in which families use their text encoders."""

from __future__ import annotations

from collections.abc import Mapping
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
USER_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

Z_IMAGE = Recipe(
    name="z_image",
    uses=(Use("qwen3", "qwen3_4b", ("4b",), USER_TURN, weights=False, layers=(-2,), gives_mask=True),),
    context=(("qwen3_4b",),),
    types=("lumina2",),
    otherwise=True,
)
KLEIN = Recipe(
    name="flux2_klein",
    uses=(
        Use(
            "qwen3",
            "qwen3_4b",
            ("4b", "8b"),
            USER_TURN + "<think>\n\n</think>\n\n",
            weights=False,
            layers=(9, 18, 27),
            min_length=512,
            masks=True,
            gives_mask=True,
        ),
    ),
    context=(("qwen3_4b",),),
    types=("flux2", "flux"),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (SD15, SD20, SDXL, REFINER, FLUX1, KLEIN, Z_IMAGE)}
)
"""`TextEncoders.kind` → its recipe, in the order in which they are tried."""
