"""Conditioning nodes on values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_autoencoder
from loraloom.nodes import conditioning as nodes
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond, Conditioning
from tests import tiny_models
from tests.nodes.runs import PlainRun


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


def prompt(value: float, tokens: int = 77, pooled: float | None = None, **options: object) -> Conditioning:
    vector = None if pooled is None else torch.full((1, 4), pooled)
    return (Cond(torch.full((1, tokens, 8), value), vector, options),)


A, B = prompt(1.0, pooled=1.0, guidance=2.0), prompt(3.0, 154, pooled=5.0)


def test_combine_keeps_both() -> None:
    assert nodes.combine(A, B) == (*A, *B)


def test_concat_appends_tokens(run: PlainRun) -> None:
    (found,) = nodes.concat(A, B, run=run)
    assert found.context.shape == (1, 231, 8)
    assert found.pooled is A[0].pooled and found.options == A[0].options
    assert not run.warnings
    nodes.concat(A, B + B, run=run)
    assert "2 entries" in run.warnings[0]
    with pytest.raises(InputError, match="empty"):
        nodes.concat(A, (), run=run)


def test_average_mixes_tokens_and_pooled(run: PlainRun) -> None:
    (found,) = nodes.average(A, B, 0.25, run=run)
    torch.testing.assert_close(found.context, torch.full((1, 77, 8), 2.5))
    assert found.pooled is not None
    torch.testing.assert_close(found.pooled, torch.full((1, 4), 4.0))
    assert found.options == {"guidance": 2.0}


def test_average_fills_what_is_missing(run: PlainRun) -> None:
    (found,) = nodes.average(B, A, 0.5, run=run)
    torch.testing.assert_close(found.context[:, :77], torch.full((1, 77, 8), 2.0))
    torch.testing.assert_close(found.context[:, 77:], torch.full((1, 77, 8), 1.5))
    (found,) = nodes.average(prompt(1.0), A, 0.5, run=run)
    assert found.pooled is A[0].pooled
    (found,) = nodes.average(A, prompt(1.0), 0.5, run=run)
    assert found.pooled is A[0].pooled


def test_areas_are_kept_in_latent_units_or_shares() -> None:
    (found,) = nodes.set_area(conditioning=A, width=512, height=256, x=64, y=8, strength=0.5)
    assert found.options == {
        "guidance": 2.0,
        "area": (32, 64, 1, 8),
        "strength": 0.5,
        "set_area_to_bounds": False,
    }
    (found,) = nodes.set_area_percentage(conditioning=A, width=0.5, height=0.25, x=0.1, y=0.2)
    assert found.options["area"] == ("percentage", 0.25, 0.5, 0.2, 0.1)
    assert nodes.set_area_strength(A, 3.0)[0].options["strength"] == 3.0
    assert "area" not in A[0].options


def test_masks_and_ranges() -> None:
    (found,) = nodes.set_mask(
        conditioning=A, mask=torch.ones(16, 16), strength=0.5, set_cond_area="mask bounds"
    )
    mask = found.options["mask"]
    assert isinstance(mask, torch.Tensor) and mask.shape == (1, 16, 16)
    assert found.options["mask_strength"] == 0.5 and found.options["set_area_to_bounds"] is True
    (found,) = nodes.set_range(A, 0.2, 0.7)
    assert (found.options["start_percent"], found.options["end_percent"]) == (0.2, 0.7)


def test_zero_out_keeps_shapes() -> None:
    (found,) = nodes.zero_out(A)
    assert found.context.shape == A[0].context.shape and not found.context.any()
    assert found.pooled is not None and not found.pooled.any()
    assert nodes.zero_out(prompt(1.0))[0].pooled is None


def test_flux_guidance() -> None:
    assert nodes.flux_guidance(A, 4.5)[0].options == {"guidance": 4.5}
    assert nodes.no_flux_guidance(A)[0].options == {"guidance": None}


def test_inpainting_models_are_told_picture_and_mask(run: PlainRun, tmp_path: Path) -> None:
    vae = open_autoencoder(tiny_models.write_vae(tmp_path / "vae.safetensors"))
    pixels = torch.rand(1, 67, 64, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 67, 64)
    mask[:, 20:40, 20:40] = 1
    positive, negative, latent = nodes.inpaint_model(
        positive=A, negative=B, vae=vae, pixels=pixels, mask=mask, run=run
    )
    network = services(run).memory.autoencoder(vae)
    grey = pixels[:, 1:65].clone()
    grey[:, 19:39, 20:40] = 0.5
    for told in (positive[0].options, negative[0].options):
        picture, hole = told["concat_latent_image"], told["concat_mask"]
        assert isinstance(picture, torch.Tensor) and isinstance(hole, torch.Tensor)
        torch.testing.assert_close(picture, network.encode(grey))
        assert hole.shape == (1, 1, 64, 64) and hole.sum() == 400
    torch.testing.assert_close(latent.get("samples", torch.empty(0)), network.encode(pixels))
    assert latent.get("noise_mask", torch.empty(0)).sum() == 400
    _, _, plain = nodes.inpaint_model(
        positive=A, negative=B, vae=vae, pixels=pixels, mask=mask, noise_mask=False, run=run
    )
    assert "noise_mask" not in plain
