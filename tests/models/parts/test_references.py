"""Reference latents and their placing, as families take them from a conditioning."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.parts.flux_latents import FLUX1_LATENTS
from loraloom.models.parts.references import Place, grid, places, placing, references
from loraloom.sampling.types import Cond

RUN = Run({}, FLUX1_LATENTS, torch.float32)


def cond(**options: object) -> Cond:
    return Cond(torch.zeros(1, 1, 1), None, options)


def test_references_are_turned_as_latents_are() -> None:
    latents = (torch.rand(1, 16, 2, 3), torch.rand(2, 16, 4, 4), torch.rand(1, 16, 1, 5, 5))
    found = references(cond(reference_latents=latents), RUN)
    assert [tuple(one.shape) for one in found] == [(1, 16, 2, 3), (2, 16, 4, 4), (1, 16, 5, 5)]
    torch.testing.assert_close(found[0], FLUX1_LATENTS.into(latents[0]))
    assert references(cond(), RUN) == ()


def test_a_reference_of_another_family_is_refused() -> None:
    with pytest.raises(InputError, match="reference latent has 4 channels"):
        references(cond(reference_latents=(torch.zeros(1, 4, 2, 2),)), RUN)


def test_a_way_to_place_that_the_network_has_not_is_refused() -> None:
    assert placing(cond(), ("offset", "index"), "offset") == "offset"
    assert placing(cond(reference_latents_method="index"), ("offset", "index"), "offset") == "index"
    with pytest.raises(InputError, match=r"'uxo'.*offset, index"):
        placing(cond(reference_latents_method="uxo"), ("offset", "index"), "offset")


SIZES = ((8, 10), (6, 8), (10, 6))


def test_offset_lays_references_below_and_beside_each_other() -> None:
    found = places("offset", (8, 8), SIZES)
    assert found == [Place(1, 0, 0), Place(1, 8, 0), Place(1, 0, 10)]


def test_uxo_lays_references_diagonally_behind_the_new_picture() -> None:
    assert places("uxo", (8, 8), SIZES) == [Place(0, 8, 8), Place(0, 16, 18), Place(0, 22, 26)]


@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
def test_index_lays_references_one_behind_the_other(method: str) -> None:
    assert places(method, (8, 8), SIZES, 10) == [Place(10), Place(20), Place(30)]


def test_a_grid_begins_at_its_place() -> None:
    found = grid(2, 3, Place(4, 10, 20), axes=4)
    assert found.tolist() == [[4, row, column, 0] for row in (10, 11) for column in (20, 21, 22)]
