"""Flux.1 Fill, narrow."""

from __future__ import annotations

from dataclasses import replace

from tests.families.bench import Api, api_node
from tests.families.models.flux1_kontext import guided, narrow

FIGURES = "flux1_fill_edit"


def _edit(name: str, case: Api) -> tuple[Api, Api]:
    nodes = {
        "prompt": api_node("CLIPTextEncode", clip=["clip", 0], text=case["prompt"]),
        "picture": api_node("FigurePicture", figures=FIGURES, name="A"),
        "mask": api_node("FigureMask", figures=FIGURES, name="mask"),
        "inpaint": api_node(
            "InpaintModelConditioning",
            positive=["prompt", 0], negative=["prompt", 0], vae=["vae", 0], pixels=["picture", 0],
            mask=["mask", 0], noise_mask=case["noise_mask"],
        ),
    }  # fmt: skip
    given = {"positive": ["inpaint", 0], "negative": ["inpaint", 1], "latent_image": ["inpaint", 2]}
    return guided(nodes, case["guidance"]), given


NARROW = replace(narrow("fill", 384), edit=_edit)
