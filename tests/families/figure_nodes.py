"""Node classes of the bench alone: pictures and latents of the figures, which no picture file holds exactly.

`references` makes the nodes of the cases that give latents as references, for `Narrow.edit`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from loraloom.engine.node import node
from loraloom.nodes.sockets import Conditioning, Image, Latent, LatentValue, Mask
from loraloom.sampling.types import Cond
from tests.families.bench import Api, Edit, api_node, measured


@node("FigurePicture", category="tests")
def figure_picture(figures: str, name: str) -> Image:
    """A picture of the figures, from those of the text encoders where they have it."""
    return _figure(figures, f"pic|{name}")


@node("FigureLatent", category="tests")
def figure_latent(figures: str, name: str) -> Latent:
    return LatentValue(samples=_figure(figures, name))


@node("FigureMask", category="tests")
def figure_mask(figures: str, name: str) -> Mask:
    return _figure(figures, name)


@node("ZeroLatent", category="tests")
def zero_latent(shape: str) -> Latent:
    """shape: "1x64x5x7"."""
    return LatentValue(samples=torch.zeros([int(side) for side in shape.split("x")]))


@node("FigureConditioning", category="tests")
def figure_conditioning(figures: str, name: str) -> Conditioning:
    return (Cond(_figure(figures, name)),)


def _figure(figures: str, name: str) -> Tensor:
    own, texts = measured(figures), measured("text")
    return torch.from_numpy(own[name] if name in own else texts[f"{figures}|{name}"]).float()


def zeros(shape: list[int]) -> Api:
    """The node of an empty latent."""
    return api_node("ZeroLatent", shape="x".join(map(str, shape)))


def references(figures: str) -> Edit:
    """Cases that give `ref|0`, `ref|1` … to ReferenceLatent, with the method that they state."""
    return partial(_references, figures)


def _references(figures: str, name: str, case: Api) -> tuple[Api, Api]:
    known = [key for key in sorted(measured(figures)) if key.startswith("ref|")]
    nodes: Api = {
        "prompt": api_node("CLIPTextEncode", clip=["clip", 0], text=case["prompt"]),
        "latent": zeros(case["latent_shape"]),
    }
    count = case.get("refs")
    keys = known[:count] if isinstance(count, int) else known
    conditioning = with_references(nodes, "prompt", figures, keys, case["method"])
    return nodes, {"positive": conditioning, "negative": conditioning, "latent_image": ["latent", 0]}


def with_references(
    nodes: Api, prompt: str, figures: str, keys: Iterable[str], method: str | None
) -> list[str | int]:
    """Adds the nodes that give latents of the figures to a node's conditioning; the link to the result."""
    conditioning: list[str | int] = [prompt, 0]
    for key in keys:
        nodes[key] = api_node("FigureLatent", figures=figures, name=key)
        name = f"{prompt} with {key}"
        nodes[name] = api_node("ReferenceLatent", conditioning=conditioning, latent=[key, 0])
        conditioning = [name, 0]
    if method is not None:
        said = {"uxo": "uxo/uno"}.get(method, method)
        given = {"reference_latents_method": said, "conditioning": conditioning}
        nodes[f"{prompt} placed"] = api_node("FluxKontextMultiReferenceLatentMethod", **given)
        conditioning = [f"{prompt} placed", 0]
    return conditioning
