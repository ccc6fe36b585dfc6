"""LoRAs row by row on every family's network: a batch whose parts carry LoRAs of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.unmerged import UnclearRows
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, SampleContext
from loraloom.weights.patch import Stack
from tests.families.bench import Shelf, narrow_by_family
from tests.models.plain_loras import plain_lora
from tests.models.residency.test_together import Runs

SHARED_TIME = {"qwen_image21": "time_text_embed"}
"""Layers that are given one row more, for what stands at time 0: LoRAs on them run part after part."""

TOKENS, WIDTH = 20, {"sd3": 4096}


@pytest.mark.parametrize("family", narrow_by_family())
def test_each_part_of_a_batch_with_its_own_loras(family: str, shelf: Shelf) -> None:
    narrow = narrow_by_family()[family][0]
    model = open_diffusion_model(shelf.folder / "diffusion_models" / shelf.network(narrow))
    memory = Memory("cpu", "fp32")
    network = memory.network(model)
    placements = model.blueprint.placements
    linear = {placed.native for name, placed in placements.items() if name.endswith(".weight")}
    shapes = {name: s for name, s in model.weights.shapes.items() if len(s) == 2 and name in linear}
    first, second = plain_lora("first", shapes), plain_lora("second", shapes)
    stacks = ((), first.at(0.5), second.at(-0.4), first.at(0.2) + second.at(0.3))

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    x = noise(1, 2 * len(stacks), network.latent_channels, 8, 8)
    context = SampleContext(noise=x[:1], latent=x[:1])
    wide = WIDTH.get(family) or model.family.context_width(network.config) or _width(model.weights.shapes)
    both = [network.inputs(Cond(noise(seed, 1, TOKENS, wide)), context) for seed in (2, 3)]
    row = Inputs.joined(both)
    time = torch.full((len(x),), 0.5 if network.parametrisation.is_flow else 500.0)
    alone: list[torch.Tensor] = []
    with torch.no_grad():
        for part, stack in enumerate(stacks):
            merged = memory.network(replace(model, stack=stack))
            alone.append(merged(x[2 * part : 2 * part + 2], time[:2], row))
        together = memory.network(model, stacks)
        inputs, wanted = Inputs.joined([row] * len(stacks), 2), torch.cat(alone)
        found = together(x, time, inputs)
        assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())
        strict = replace(together, apart=None)
        if family in SHARED_TIME:
            with pytest.raises(UnclearRows, match=SHARED_TIME[family]):
                strict(x, time, inputs)
        else:
            assert torch.equal(strict(x, time, inputs), found)


def _width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of the tokens that the network reads."""
    return next(shape[1] for name, shape in shapes.items() if name.endswith("txt_in.weight"))


def test_runs_whose_layers_do_not_tell_rows_are_merged(shelf: Shelf) -> None:
    narrow = narrow_by_family()["qwen_image21"][0]
    model = open_diffusion_model(shelf.folder / "diffusion_models" / shelf.network(narrow))
    shapes = {name: s for name, s in model.weights.shapes.items() if len(s) == 2 and "time" in name}
    stacks = [plain_lora(name, shapes).at(0.5) for name in ("first", "second")]
    runs = Runs()

    def steps(memory: Memory, stack: Stack) -> torch.Tensor:
        network = memory.network(replace(model, stack=stack))
        x = torch.ones(1, network.latent_channels, 8, 8)
        wide = model.family.context_width(network.config)
        given = network.inputs(Cond(torch.ones(1, TOKENS, wide)), SampleContext(noise=x, latent=x))
        for level in (0.9, 0.5):
            x = x - 0.1 * network(x, torch.tensor([level]), given)
        return x

    with torch.no_grad():
        alone = [steps(runs.memory, stack) for stack in stacks]
    found = runs([lambda memory, stack=stack: steps(memory, stack) for stack in stacks])
    for one, wanted in zip(found, alone, strict=True):
        assert isinstance(one, torch.Tensor)
        assert float((one - wanted).norm()) <= 1e-5 * float(wanted.norm())
    assert runs.calls == [2, 1, 1] and "is given 3 rows" in str((runs.said[0] or {})["loras"])
