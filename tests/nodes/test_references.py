"""Nodes that show a model pictures beside its prompt, on values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_autoencoder, open_diffusion_model
from loraloom.nodes import references as nodes
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond, Conditioning
from tests import tiny_models
from tests.nodes.runs import PlainRun

PROMPT: Conditioning = (Cond(torch.zeros(1, 3, 8), None, {"guidance": 2.0}), Cond(torch.ones(1, 3, 8)))


def test_references_follow_each_other_on_every_entry() -> None:
    first, second = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 3, 3)
    once = nodes.reference_latent(PROMPT, {"samples": first})
    twice = nodes.reference_latent(once, {"samples": second})
    for cond, before in zip(twice, PROMPT, strict=True):
        found = cond.options["reference_latents"]
        assert isinstance(found, tuple) and found[0] is first and found[1] is second
        assert {**cond.options, "reference_latents": ()} == {**before.options, "reference_latents": ()}
    assert once[0].options["reference_latents"] == (first,)
    assert nodes.reference_latent(PROMPT) is PROMPT


@pytest.mark.parametrize("said", nodes.REFERENCE_METHODS)
def test_the_method_is_written_on_every_entry(said: str) -> None:
    found = [cond.options["reference_latents_method"] for cond in nodes.reference_method(PROMPT, said)]
    assert found == [{"uxo/uno": "uxo"}.get(said, said)] * 2


def test_a_picture_is_laid_beside_an_empty_latent(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    vae = open_autoencoder(tiny_models.write_vae(tmp_path / "vae.safetensors"))
    pixels = torch.rand(1, 67, 40, 4)
    positive, negative, latent = nodes.beside_picture(PROMPT, PROMPT[:1], vae, pixels, run=run)
    encoded = services(run).memory.autoencoder(vae).encode(pixels[..., :3])
    assert encoded.shape[-2:] == (8, 5)
    for cond in (*positive, *negative):
        told = cond.options["concat_latent_image"]
        assert isinstance(told, torch.Tensor) and torch.equal(told, encoded)
    assert torch.equal(latent["samples"], torch.zeros_like(encoded))
    assert positive[0].options["guidance"] == 2.0


def test_several_pictures_become_references_and_the_size_of_the_latent(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    vae = open_autoencoder(tiny_models.write_vae(tmp_path / "vae.safetensors"))
    said: dict[str, Any] = {"resolution.megapixels": 0.01}
    said |= {"images.image1": torch.rand(1, 64, 64, 3), "images.image0": torch.rand(1, 48, 96, 3)}
    positive, negative, latent = nodes.reference_latents(PROMPT, PROMPT[:1], vae, run=run, **said)
    assert latent["samples"].shape[-2:] == (10, 18) and not latent["samples"].any()
    for cond in (*positive, *negative):
        shown = cond.options["reference_latents"]
        assert isinstance(shown, tuple)
        assert [one.shape[-2:] for one in shown] == [(10, 18), (12, 12)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "has no pictures"),
        ({"images.picture": 1}, "is no picture of this node"),
        ({"resolution.megapixels": 0}, "a number above 0"),
    ],
)
def test_what_several_references_need(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    vae = open_autoencoder(tiny_models.write_vae(tmp_path / "vae.safetensors"))
    with pytest.raises(InputError, match=message):
        nodes.reference_latents(PROMPT, None, vae, run=PlainRun(tmp_path), **said)
    with pytest.raises(InputError, match="no VAE"):
        nodes.reference_latents(PROMPT, run=PlainRun(tmp_path), **said)


def test_a_cache_of_references_leaves_other_families_as_they_are(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    model = open_diffusion_model(tiny_models.write_flux(tmp_path / "flux.safetensors"))
    assert nodes.reference_cache(model, run=run) is model
    assert "Flux.1 computes its references in every step" in run.warnings[0]
