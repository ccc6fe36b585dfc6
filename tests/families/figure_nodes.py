"""Node classes of the bench alone: pictures and latents of the figures, which no picture file holds exactly.

`references` makes the nodes of the cases that give latents as references, for `Narrow.edit`.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor

from loraloom.engine.node import node
from loraloom.nodes.sockets import Image, Latent, LatentValue
from tests.families.bench import Api, Edit, api_node, measured


@node("FigurePicture", category="tests")
def figure_picture(figures: str, name: str) -> Image:
    """A picture of the figures, from those of the text encoders where they have it."""
    return _figure(figures, f"pic|{name}")


@node("FigureLatent", category="tests")
def figure_latent(figures: str, name: str) -> Latent:
    return LatentValue(samples=_figure(figures, name))


@node("ZeroLatent", category="tests")
def zero_latent(shape: str) -> Latent:
    """shape: "1x64x5x7"."""
    return LatentValue(samples=torch.zeros([int(side) for side in shape.split("x")]))


def _figure(figures: str, name: str) -> Tensor:
    """A single frame is dropped."""
    own, texts = measured(figures), measured("text")
    tensor = torch.from_numpy(own[name] if name in own else texts[f"{figures}|{name}"]).float()
    return tensor[:, :, 0] if tensor.dim() == 5 and tensor.shape[2] == 1 else tensor


def zeros(shape: list[int]) -> Api:
    """The node of an empty latent; a single frame is dropped."""
    sides = [shape[0], shape[1], *shape[3:]] if len(shape) == 5 and shape[2] == 1 else shape
    assert prod(sides) == prod(shape)
    return api_node("ZeroLatent", shape="x".join(map(str, sides)))


def references(figures: str) -> Edit:
    """Cases that give `ref|0`, `ref|1` … to ReferenceLatent, with the method that they state."""
    return partial(_references, figures)


def _references(figures: str, name: str, case: Api) -> tuple[Api, Api]:
    known = [key for key in sorted(measured(figures)) if key.startswith("ref|")]
    nodes: Api = {
        "prompt": api_node("CLIPTextEncode", clip=["clip", 0], text=case["prompt"]),
        "latent": zeros(case["latent_shape"]),
    }
    conditioning, count = ["prompt", 0], case.get("refs")
    for key in known[:count] if isinstance(count, int) else known:
        nodes[key] = api_node("FigureLatent", figures=figures, name=key)
        nodes[f"with {key}"] = api_node("ReferenceLatent", conditioning=conditioning, latent=[key, 0])
        conditioning = [f"with {key}", 0]
    if case["method"] is not None:
        method = {"reference_latents_method": case["method"], "conditioning": conditioning}
        nodes["method"] = api_node("FluxKontextMultiReferenceLatentMethod", **method)
        conditioning = ["method", 0]
    return nodes, {"positive": conditioning, "negative": conditioning, "latent_image": ["latent", 0]}
