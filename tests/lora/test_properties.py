"""What holds for every LoRA: its names in every spelling, its receipt, and that its change is finite."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.lora.algebra import Ingredients
from loraloom.lora.algebras import recognise, registry
from loraloom.lora.algorithms.dora import Decomposed
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.lora.module_names import PEFT_WRAPPER, Names, take_apart
from loraloom.lora.writing import DIALECTS, Speller, by_ending
from loraloom.weights.patch import Target

from . import tables
from .test_rewriting import BASE


@cache
def _speller(family: str, dialect: str) -> Speller:
    return Speller(tables.components(family), dialect)


@cache
def _names(family: str, kind: ComponentName) -> tuple[Names, list[Target]]:
    component: Component = tables.components(family)[kind]
    there = {target for target in component.names.values() if target.weight in component.shapes}
    return Names(component), sorted(there, key=str)


@settings(max_examples=100)
@given(
    st.sampled_from(tables.MEASURED), st.sampled_from(["model", "clip"]), st.sampled_from(DIALECTS), st.data()
)
def test_a_module_is_found_under_the_name_that_a_dialect_gives_it(
    family: str, kind: ComponentName, dialect: str, data: st.DataObject
) -> None:
    names, targets = _names(family, kind)
    target = data.draw(st.sampled_from(targets))
    written = _speller(family, dialect).name(kind, target)
    if written is None:
        assert target.rows or target.swapped
        return
    read = take_apart(written)
    assert read.component == kind and names.target(read) == target
    wrapped = take_apart(PEFT_WRAPPER + written)
    assert names.target(wrapped) == target and wrapped.component == kind


GOOD = ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1")
SHAPES: dict[str, tuple[int, int]] = dict(zip(GOOD, ((8, 8), (12, 6)), strict=True))
NOWHERE = st.sets(st.sampled_from(["lora_unet_nowhere", "lora_te_nothing", "lora_unet_down_blocks_9_x"]))


@settings(max_examples=25)
@given(
    fitting=st.sets(st.sampled_from(GOOD), min_size=1),
    nowhere=NOWHERE,
    too_wide=st.booleans(),
    rank=st.integers(1, 3),
)
def test_a_receipt_accounts_for_every_module(
    fitting: set[str], nowhere: set[str], too_wide: bool, rank: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "receipt.safetensors"
    tensors: dict[str, Tensor] = {}
    for name in (*fitting, *nowhere):
        out, inner = SHAPES.get(name, (4, 4))
        tensors[f"{name}.lora_up.weight"] = torch.ones(out, rank)
        tensors[f"{name}.lora_down.weight"] = torch.ones(rank, inner)
    if too_wide:
        tensors["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"] = torch.ones(99, rank, 1, 1)
        tensors["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"] = torch.ones(rank, 4, 3, 3)
    save_file(tensors, path)
    receipt = load_lora(read_lora(path), BASE).receipt
    assert receipt.matched == len(fitting)
    assert set(receipt.unplaced) == nowhere
    assert len(receipt.rejected) == too_wide
    assert receipt.total == len(fitting) + len(nowhere) + too_wide
    assert receipt.complete == (not nowhere and not too_wide)
    assert (receipt.to_json()["matched"], receipt.to_json()["total"]) == (receipt.matched, receipt.total)


class Given:
    """A change that is there already."""

    def __init__(self, delta: Tensor) -> None:
        self.change = delta

    def delta(self, weight: Tensor) -> Tensor:
        return self.change.clone()


NUMBERS = st.floats(-1e4, 1e4, width=32) | st.just(0.0)
MATRICES = st.lists(NUMBERS, min_size=6, max_size=6).map(lambda values: torch.tensor(values).reshape(2, 3))


@settings(max_examples=100)
@given(MATRICES, MATRICES, st.lists(st.floats(0, 1e6, width=32), min_size=3, max_size=3), st.booleans())
def test_a_dora_is_finite_and_gives_rows_their_magnitude(
    weight: Tensor, change: Tensor, magnitudes: list[float], on_input: bool
) -> None:
    magnitude = torch.tensor(magnitudes if on_input else magnitudes[:2]).reshape(
        (1, 3) if on_input else (2, 1)
    )
    delta = Decomposed(Given(change), magnitude, on_input).delta(weight)  # type: ignore[arg-type]
    assert delta.isfinite().all()
    axis = 0 if on_input else 1
    norms, moved = (weight + delta).norm(dim=axis), (weight + change).norm(dim=axis)
    assert (norms[(weight + change).abs().amax(dim=axis) == 0] == 0).all()
    sure = moved > 1.0
    wanted = magnitude.flatten()[sure]
    assert torch.allclose(norms[sure], wanted, rtol=1e-3, atol=1e-3 + 1e-6 * float(weight.abs().max()))


def _shape(chance: random.Random) -> tuple[int, ...]:
    return tuple(chance.choice((0, 1, 2, 3, 4, 6)) for _ in range(chance.choice((0, 1, 1, 2, 2, 2, 3, 4, 5))))


def _module(chance: random.Random, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Roles of some algebra with shapes that often fit a weight, as a damaged or a hostile file has them."""
    algebra, _, needs = chance.choice(registry().forms)
    roles = [
        *sorted(chance.choice(needs)),
        *(role for role in algebra.takes.split() if chance.random() < 0.3),
    ]
    roles += [chance.choice(("dora", "magnitude"))] if algebra.wrapped and chance.random() < 0.4 else []
    rank = chance.choice((1, 2))
    pool = [
        weight, (weight[0], rank), (rank, *weight[1:]), (weight[0],), (2, 2), (1, 2, 2), (2, 2, 2),
        (1, 2, 2, 2), (1, 1), _shape(chance), _shape(chance),
    ]  # fmt: skip
    scalars = {"alpha": (), "gamma": (), "on_input": (1,), "scaled_oft": (1,)}
    return {
        r: scalars.get(r, ()) if r in scalars and chance.random() < 0.8 else chance.choice(pool)
        for r in roles
    }


@pytest.mark.parametrize("seed", range(8))
def test_what_fits_can_be_applied_and_written(seed: int) -> None:
    """Whatever the shapes are, a module is refused with a reason or works; nothing fails later."""
    chance, applied = random.Random(seed), set[str]()
    for _ in range(4000):
        weight = chance.choice(
            [(4, 4), (4, 6), (6, 4), (4,), (2,), (4, 4, 3, 3), (1, 4), (4, 1), (2, 2), (6, 4, 1, 1)]
        )
        module = _module(chance, weight)
        for one in recognise(module)[0]:
            shapes = one.pick(module)
            shape = one.algebra.enlarged(shapes, weight, control=False)
            if one.misfit(shapes, shape) is not None:
                continue
            tensors = {
                r: torch.randint(0, 2, s) if "indices" in r else torch.rand(s) for r, s in shapes.items()
            }
            for comfyui in (False, True):
                try:
                    change = one.change(Ingredients(tensors, shape, 1.0, comfyui))
                except ModelFileError:
                    continue
                assert change.apply(torch.ones(shape), 0.5).shape == shape, shapes
                assert change.delta(torch.ones(shape)).shape == shape
                change.norm(lambda shape=shape: torch.ones(shape))
                change.factors()
            one.algebra.is_zero(tensors)
            one.algebra.factored({role: tensor.float() for role, tensor in tensors.items()}, shape)
            for dialect in DIALECTS:
                by_ending(one, tensors, 1.0, len(shape), dialect)
            applied.add(one.label)
    assert len(applied) > 8
