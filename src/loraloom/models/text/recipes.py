"""The ways in which text encoders are used: those of the families, and those of no family."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from loraloom.models import recognition
from loraloom.models.recipe import Recipe, Use
from loraloom.models.text.templates import PICTURE, USER_TURN

QWEN3_VL = Recipe(
    name="qwen3_vl",
    uses=(Use("qwen3vl", "qwen3vl_4b", template=USER_TURN, takes_whole=True, brackets="letters"),),
    context=(("qwen3vl_4b",),),
    otherwise=True,
    not_for=("mage", "flux3", "fibo2", "boogu", "ideogram4", "joyimage", "minimax"),
    picture_text=PICTURE,
)
"""Qwen3-VL as it is, to write texts with."""

NOT_RUN: Mapping[str, str] = MappingProxyType(
    {
        "hidream": "the type 'hidream' is HiDream's, which is not run here: neither is its network, nor is "
        "Llama 3.1, which reads its prompts; its vocabulary is under Meta's licence and comes neither with "
        "encoder files nor with Loraloom. Run this workflow in ComfyUI, or take a model of another family"
    }
)
"""Types of loaders for which there is no recipe → why, and what to do."""


@cache
def known_recipes() -> Mapping[str, Recipe]:
    """`TextEncoders.kind` → its recipe, in the order in which they are tried."""
    found: dict[str, Recipe] = {}
    for family in recognition.families():
        for recipe in family.prompts:
            if recipe.name in found:
                raise ValueError(f"two recipes are called {recipe.name!r}; one is {family.title}'s")
            found[recipe.name] = recipe
    return MappingProxyType({**found, QWEN3_VL.name: QWEN3_VL})
