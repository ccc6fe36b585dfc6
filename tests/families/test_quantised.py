"""Whole pictures from quantised files against ComfyUI's latents, with a LoRA and without.

The file is the narrow model with the same layers quantised as that of the figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from loraloom.session import Session
from loraloom.weights.tensor_file import TensorFile
from tests.families.bench import Narrow, Shelf, graph_of, narrow_models
from tests.narrow_quantised import write_quantised

FIGURES = Path(__file__).parents[1] / "data" / "storage" / "latents.npz"
QUANTISED = {
    "z_image": ("attention.qkv", "attention.out", "feed_forward"),
    "qwen_image": ("transformer_blocks.",),
}
CASE = {
    "width": 64, "height": 64, "batch": 1, "shift": None, "loras": [], "seed": 1234, "steps": 4, "cfg": 1.0,
    "positive": "a red fox in the snow, oil painting", "negative": "",
}  # fmt: skip


def latent_of(session: Session, shelf: Shelf, narrow: Narrow, file: str, lora: bool) -> Tensor:
    case = CASE | {"loras": [("kohya", 0.8)] if lora else []}
    graph = graph_of(shelf, narrow, case)
    graph["unet"]["inputs"]["unet_name"] = file
    run = session.run(graph)
    path = next(output.path for output in run.outputs if output.path.suffix == ".latent")
    return TensorFile(path).read("latent_tensor", torch.float32)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("family", "variant", "to", "option"),
    [
        ("z_image", "fp8_scaled", "fp8", ""),
        ("z_image", "int8_convrot", "int8", "convrot64"),
        ("qwen_image", "fp8_scaled", "fp8", ""),
        ("qwen_image", "int8_convrot", "int8", "convrot"),
    ],
)
def test_latents_are_comfyuis(
    session: Session, shelf: Shelf, family: str, variant: str, to: str, option: str
) -> None:
    """fp8 to rounding of float32. Rounding inputs to int8 makes every picture its own: noise of 1e-8 in each
    layer moves it by 1 %, so ours may be as far from ComfyUI's as ComfyUI's from itself. LoRAs are exact here
    and requantised there: ours are nearer to the wide model's picture."""
    narrow, name = narrow_models()[family], f"{family}_{variant}"
    file = shelf.put(
        f"diffusion_models/{name}.safetensors",
        lambda path: write_quantised(path, narrow.network(), QUANTISED[family], to, option),
    )
    with np.load(FIGURES) as figures:
        theirs, plain = (torch.from_numpy(figures[f"{one}|latent"]) for one in (name, family))
        their_lora, plain_lora = (torch.from_numpy(figures[f"{one}|latent_lora"]) for one in (name, family))
    found = latent_of(session, shelf, narrow, file, lora=False).reshape(theirs.shape)
    assert distance(found, theirs) < (1e-5 if to == "fp8" else 0.02)
    assert distance(found, plain) < 1.2 * distance(theirs, plain)
    found = latent_of(session, shelf, narrow, file, lora=True).reshape(theirs.shape)
    assert distance(found, plain_lora) < distance(their_lora, plain_lora)
