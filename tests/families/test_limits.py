"""Prompts and pictures as long as people make them, and what is said where a model ends before."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.families.lumina2 import network as lumina2
from loraloom.models.families.z_image import network as z_image
from loraloom.models.family import NetworkFunctions
from loraloom.models.parts.flux_latents import FLUX1_LATENTS
from loraloom.sampling.types import Cond
from loraloom.session import NodeFailure, Session
from tests.families.bench import Api, Shelf, graph_of, narrow_models, stated


def _graph(shelf: Shelf, name: str, **changes: object) -> Api:
    case = {**stated(name)["cases"]["plain"], "steps": 1, **changes}
    return graph_of(shelf, narrow_models()[name], case)


def test_a_prompt_of_thousands_of_tokens_is_read(session: Session, shelf: Shelf) -> None:
    """Lumina 2's library has a table of positions; ComfyUI's has no end."""
    (picture,) = session.run(_graph(shelf, "lumina2", positive="a castle on a hill, " * 250)).images
    assert picture.size == (64, 64)


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_the_longest_picture_is_drawn(name: str, session: Session, shelf: Shelf) -> None:
    graph = _graph(shelf, name, width=16384, height=16)
    del graph["decode"], graph["save"]
    assert session.run(graph).outputs


@pytest.mark.parametrize("network", [lumina2, z_image])
def test_a_prompt_beyond_the_table_of_positions_is_refused(network: NetworkFunctions) -> None:
    run = Run({}, FLUX1_LATENTS, torch.float32)
    with pytest.raises(InputError, match=r"the prompt has 40000 tokens; this model reads at most 32704"):
        network.inputs(Cond(torch.zeros(1, 40000, 1)), run)


def test_a_picture_beyond_the_table_of_positions_is_refused(session: Session, shelf: Shelf) -> None:
    said = r"400×64 pixels are more than this model has positions for: at most 384 in"
    with pytest.raises(NodeFailure, match=said):
        session.run(_graph(shelf, "sd35", width=400, height=64))
