"""Qwen-Image-Edit 2511, narrow: its references are seen at time 0."""

from __future__ import annotations

import torch

from tests.families.autoencoders import write_wan
from tests.families.bench import Api, Narrow, api_node
from tests.families.figure_nodes import with_references, zeros
from tests.families.models import qwen_image
from tests.narrow_models import Weights, write_qwen25vl

FIGURES = "qwen_edit_edit"


def network() -> Weights:
    return qwen_image.network("fam.qwen_edit")


def edit(name: str, case: Api) -> tuple[Api, Api]:
    nodes: Api = {"latent": zeros(case["latent_shape"])}
    if "node" in case:
        picture = api_node("FigurePicture", figures=FIGURES, name="A")
        given = {"prompt": case["prompt"], "clip": ["clip", 0], "vae": ["vae", 0], "image1": ["picture", 0]}
        nodes |= {"picture": picture, "prompt": api_node("TextEncodeQwenImageEditPlus", **given)}
        positive = negative = ["prompt", 0]
    else:
        nodes["seen"] = api_node("FigureConditioning", figures=FIGURES, name=case["conditioning"])
        nodes["empty"] = api_node("CLIPTextEncode", clip=["clip", 0], text="")
        positive, negative = (
            with_references(nodes, prompt, FIGURES, ("ref|0", "ref|1"), case["method"])
            for prompt in ("seen", "empty")
        )
    return nodes, {"positive": positive, "negative": negative, "latent_image": ["latent", 0]}


NARROW = Narrow(
    name="qwen_edit",
    network=network,
    clip_type="qwen_image",
    encoders={"qwen_2.5_vl_7b": write_qwen25vl},
    autoencoder=write_wan,
    edit=edit,
    others={"__index_timestep_zero__": torch.zeros(0)},
)
