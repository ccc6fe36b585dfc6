"""Flux.1 Canny (and Depth), narrow."""

from __future__ import annotations

from dataclasses import replace

from tests.families.bench import Api, api_node
from tests.families.models.flux1_kontext import guided, narrow


def _edit(name: str, case: Api) -> tuple[Api, Api]:
    nodes = {
        "prompt": api_node("CLIPTextEncode", clip=["clip", 0], text=case["prompt"]),
        "picture": api_node("FigurePicture", figures="flux1_canny_edit", name="A"),
        "beside": api_node(
            "InstructPixToPixConditioning",
            positive=["prompt", 0], negative=["prompt", 0], vae=["vae", 0], pixels=["picture", 0],
        ),
    }  # fmt: skip
    given = {"positive": ["beside", 0], "negative": ["beside", 1], "latent_image": ["beside", 2]}
    return guided(nodes, case["guidance"]), given


NARROW = replace(narrow("canny", 128), edit=_edit)
