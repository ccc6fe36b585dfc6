"""Latents of autoencoders of films have a dimension of frames, be it of one, as ComfyUI's have: nodes that
turn or mirror latents take the frames for rows, and the rows for columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.session import Session
from loraloom.weights.tensor_file import TensorFile
from tests.families.autoencoders import write_ae, write_qwen_image21, write_wan
from tests.families.bench import Shelf, Write, api_node, graph_of, narrow_models, stated

X, Y = "x-axis: vertically", "y-axis: horizontally"


def _saved(paths: list[Path], name: str) -> Tensor:
    (path,) = [path for path in paths if path.match(f"{name}_*.latent")]
    return TensorFile(path).read("latent_tensor", torch.float32)


@pytest.mark.parametrize(
    ("write", "is_film"), [(write_wan, True), (write_ae, False), (write_qwen_image21, False)]
)
def test_encoded_pictures_are_mirrored_as_comfyui_does(
    write: Write, is_film: bool, session: Session, shelf: Shelf
) -> None:
    graph = {
        "picture": api_node("FigurePicture", figures="qwen_edit_edit", name="A"),
        "vae": api_node("VAELoader", vae_name=shelf.put(f"vae/{write.__name__}.safetensors", write)),
        "plain": api_node("VAEEncode", pixels=["picture", 0], vae=["vae", 0]),
        "flip_x": api_node("LatentFlip", samples=["plain", 0], flip_method=X),
        "flip_y": api_node("LatentFlip", samples=["plain", 0], flip_method=Y),
    }
    for name in ("plain", "flip_x", "flip_y"):
        graph[f"save_{name}"] = api_node("SaveLatent", samples=[name, 0], filename_prefix=f"{name}")
    paths = [output.path for output in session.run(graph).outputs]
    plain, flip_x, flip_y = (_saved(paths, name) for name in ("plain", "flip_x", "flip_y"))
    assert plain.dim() == (5 if is_film else 4)
    assert torch.equal(flip_x, plain if is_film else plain.flip(-2))
    assert torch.equal(flip_y, plain.flip(-2) if is_film else plain.flip(-1))


@pytest.mark.parametrize("name", ["qwen_image", "krea2"])
def test_a_sampled_latent_goes_on_with_its_frame(name: str, session: Session, shelf: Shelf) -> None:
    """Enlarged and sampled again, as workflows for larger pictures do."""
    graph = graph_of(shelf, narrow_models()[name], stated(name)["cases"]["plain"])
    graph["larger"] = api_node(
        "LatentUpscaleBy", samples=["sample", 0], upscale_method="bislerp", scale_by=1.5
    )
    again = {**graph["sample"]["inputs"], "latent_image": ["larger", 0], "denoise": 0.5}
    graph["again"] = api_node("KSampler", **again)
    graph["latents"]["inputs"]["samples"] = graph["decode"]["inputs"]["samples"] = ["again", 0]
    run = session.run(graph)
    latent = _saved([output.path for output in run.outputs], "figure")
    assert latent.shape[:3] == (1, 16, 1) and latent.shape[-2:] == (12, 12)
    assert run.images[0].size == (96, 96)
