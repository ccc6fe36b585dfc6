"""Flux.2 with FluxKVCache: references are computed in the first step, and later ones attend to what it kept.

ComfyUI's rule is put here over diffusers' own attention."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.together import Together
from loraloom.nodes.references import reference_cache
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, Network, SampleContext
from tests.families.models import flux2_klein
from tests.nodes.runs import PlainRun

TEXT, NEW, REFERENCES = 512, 3 * 4, 2 * 3 + 2 * 2
X = torch.randn(1, flux2_klein.CHANNELS, 3, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    path = flux2_klein.network().write(tmp_path_factory.mktemp("kept") / "flux2_klein.safetensors")
    return open_diffusion_model(path)


@pytest.fixture
def cached(model: DiffusionModel, tmp_path: Any) -> DiffusionModel:
    return reference_cache(model, run=PlainRun(tmp_path))


def cond(seed: int = 0) -> Cond:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, 9, flux2_klein.TEXT, generator=generator)
    shown = [torch.randn(1, flux2_klein.CHANNELS, *size, generator=generator) for size in ((2, 3), (2, 2))]
    return Cond(context, options={"reference_latents": tuple(shown)})


def step(network: Network, time: float, *conds: Cond, x: Tensor = X) -> Tensor:
    context = SampleContext(x, x)
    inputs = Inputs.joined([network.inputs(given, context) for given in conds], len(x))
    rows = torch.cat([x] * len(conds))
    with torch.inference_mode():
        return network(rows, torch.full((len(rows),), time), inputs)


class AsComfyUI:
    """The same network without our cache, computed whole in each step; but from the second on, everybody
    attends to the references' keys and values of the first. (What references attend to is of no matter then:
    nobody looks at them.)"""

    def __init__(self, model: DiffusionModel) -> None:
        self.memory, self.model = Memory("cpu", "fp32"), model.with_option("keeps_references", False)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def step(self, time: float, *conds: Cond) -> Tensor:
        network = self.memory.network(self.model)
        if not self.kept:
            with self.attending(self._keep):
                return step(network, time, *conds)
        told = iter(self.kept)

        def beside(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            keys, values = next(told)
            own = slice(0, TEXT + NEW)
            return query, torch.cat([key[:, own], keys], 1), torch.cat([value[:, own], values], 1)

        with self.attending(beside):
            return step(network, time, *conds)

    def _keep(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.kept.append((key[:, -REFERENCES:].clone(), value[:, -REFERENCES:].clone()))
        return query, key, value

    @contextmanager
    def attending(self, change: Any) -> Generator[None]:
        import diffusers.models.transformers.transformer_flux2 as library

        own = library.dispatch_attention_fn

        def changed(query: Tensor, key: Tensor, value: Tensor, **told: Any) -> Tensor:
            return own(*change(query, key, value), **told)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "dispatch_attention_fn", changed)
            yield


def test_numbers_are_comfyuis_from_the_second_step_on(model: DiffusionModel, cached: DiffusionModel) -> None:
    ours, theirs = Memory("cpu", "fp32").network(cached), AsComfyUI(cached)
    plain = Memory("cpu", "fp32").network(cached.with_option("keeps_references", False))
    for number, time in enumerate((0.9, 0.5, 0.1)):
        found = step(ours, time, cond(1), cond(2))
        torch.testing.assert_close(found, theirs.step(time, cond(1), cond(2)), rtol=1e-4, atol=1e-5)
        away = float((found - step(plain, time, cond(1), cond(2))).abs().max())
        assert away < 1e-5 if number == 0 else away > 1e-3


def test_later_steps_compute_no_references(cached: DiffusionModel) -> None:
    memory, tokens = Memory("cpu", "fp32"), list[int]()
    network = memory.network(cached)
    blocks = cast("nn.ModuleList", memory.resident_module(cached).single_transformer_blocks)
    blocks[0].register_forward_pre_hook(lambda block, given: tokens.append(given[0].shape[1]))
    for given in (cond(1), cond(2), cond(1), cond(2)):
        step(network, 0.5, given)
    step(network, 0.5, Cond(cond(1).context, options=cond(3).options))
    whole = TEXT + NEW + REFERENCES
    assert tokens == [whole, whole, TEXT + NEW, TEXT + NEW, whole]


def test_a_prompt_without_pictures_is_as_without_the_node(
    model: DiffusionModel, cached: DiffusionModel
) -> None:
    given = Cond(cond().context)
    ours, plain = Memory("cpu", "fp32").network(cached), Memory("cpu", "fp32").network(model)
    torch.testing.assert_close(step(ours, 0.5, given), step(plain, 0.5, given))


def test_runs_that_keep_references_are_not_evaluated_with_others(
    model: DiffusionModel, cached: DiffusionModel
) -> None:
    """What they keep is of their own first step."""
    memory = Memory("cpu", "fp32")
    memory.joined = Together(memory, 2)
    assert memory.network(model).joining is not None
    assert memory.network(cached).joining is None


def test_nothing_is_kept_without_memory_for_it(
    cached: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Memory, "has_room", lambda memory, needed, kept=None, may_shrink=True, beside=(): may_shrink
    )
    network = Memory("cpu", "fp32").network(cached)
    plain = Memory("cpu", "fp32").network(cached.with_option("keeps_references", False))
    for time in (0.9, 0.5):
        torch.testing.assert_close(step(network, time, cond()), step(plain, time, cond()))
