"""Networks of several runs in one batch give each run what it gives by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import Cancelled
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.row_plan import Speeds
from loraloom.models.residency.together import Together
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, Network, SampleContext
from loraloom.weights.patch import Stack
from tests import tiny_models
from tests.models.plain_loras import PlainLora, plain_lora

BESIDE = Speeds(flop=0.0, byte=1.0, layer=0.0)
"""Rebuilding is dear: LoRAs run beside the weights."""

MERGED = Speeds(flop=1.0, byte=0.0, layer=0.0)
LEVELS = (900.0, 500.0, 20.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    path = tmp_path_factory.mktemp("together") / "tiny.safetensors"
    return open_checkpoint(tiny_models.write_sd15(path))[0]


@pytest.fixture(scope="module")
def loras(model: DiffusionModel) -> list[PlainLora]:
    shapes = {name: s for name, s in model.weights.shapes.items() if ".attn" in name and len(s) == 2}
    return [plain_lora(f"lora {n}", shapes) for n in range(3)]


def with_stack(model: DiffusionModel, stack: Stack) -> DiffusionModel:
    return replace(model, stack=stack)


def sampled(network: Network, seed: int, tokens: int = 77, batch: int = 1) -> Tensor:
    """A few calls, each with what the one before gave."""
    x = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    cond = Cond(torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed + 100)))
    context = SampleContext(noise=x, latent=x, sigmas=torch.zeros(len(LEVELS) + 1))
    inputs = Inputs.joined([network.inputs(cond, context)], batch)
    for level in LEVELS:
        x = x - 0.3 * network(x, torch.full((batch,), level), inputs)
    return x


class Runs:
    """Runs in threads over one memory; calls: the batch sizes of the evaluations."""

    def __init__(self, speeds: Speeds = BESIDE, most: int | None = None) -> None:
        self.memory, self._speeds, self._most = Memory("cpu", "fp32"), speeds, most
        self.calls: list[int] = []
        self.said: dict[int, Mapping[str, str | int] | None] = {}

    def __call__(
        self, parts: Sequence[Callable[[Memory], Tensor]], cancelled: Mapping[int, Callable[[], bool]] = {}
    ) -> list[Tensor | Exception]:
        together = Together(self.memory, len(parts), self._most, self._speeds)
        self.memory.joined = together
        found: dict[int, Tensor | Exception] = {}

        def work(number: int) -> None:
            with torch.no_grad(), together.turns.taking_part(number, cancelled.get(number, lambda: False)):
                try:
                    found[number] = parts[number](self.memory)
                except Exception as error:  # noqa: BLE001 - is looked at by the test
                    found[number] = error
                self.said[number] = together.said()

        evaluate = together._evaluate  # pyright: ignore[reportPrivateUsage]

        def counted(rows: list[tuple[int, object]]) -> object:
            self.calls.append(len(rows))
            return evaluate(rows)  # pyright: ignore[reportArgumentType]

        together._evaluate = counted  # type: ignore[method-assign,assignment] # pyright: ignore
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.memory.joined = None
        return [found[number] for number in range(len(parts))]

    def held(self, model: DiffusionModel, stacks: Sequence[Stack], seeds: Sequence[int] = ()) -> None:
        """That runs with these stacks give what each gives alone."""
        seeds = seeds or range(len(stacks))
        models = [with_stack(model, stack) for stack in stacks]
        with torch.no_grad():
            alone = [sampled(self.memory.network(m), s) for m, s in zip(models, seeds, strict=True)]
        both = zip(models, seeds, strict=True)
        parts = [lambda memory, m=m, s=s: sampled(memory.network(m), s) for m, s in both]
        for found, wanted in zip(self(parts), alone, strict=True):
            assert isinstance(found, Tensor)
            assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_seeds_alone_are_one_batch_with_merged_loras(model: DiffusionModel, loras: list[PlainLora]) -> None:
    runs = Runs()
    runs.held(model, [loras[0].at(0.7)] * 4)
    assert runs.calls == [4, 4, 4]
    assert runs.said[2] == {"rows": 4, "loras": "all rows have the same LoRAs"}


def test_different_loras_and_strengths_are_one_batch(model: DiffusionModel, loras: list[PlainLora]) -> None:
    a, b, c = loras
    runs = Runs()
    runs.held(model, [(), a.at(1.0), b.at(-0.5), a.at(0.3) + c.at(0.8), a.at(0.3), b.at(0.1) + a.at(0.2)])
    assert runs.calls == [6, 6, 6]
    assert "beside the weights, each for its rows" in str((runs.said[1] or {})["loras"])


@pytest.mark.parametrize("strides", [False, True])
def test_convolutions_row_by_row(model: DiffusionModel, strides: bool) -> None:
    """Kernels of one pixel and wider, with the stride of the layer."""
    shapes = {
        name: shape
        for name, shape in model.weights.shapes.items()
        if len(shape) == 4 and name.startswith("input_blocks") and (".op." in name) == strides
    }
    assert {shape[2] for shape in shapes.values()} == ({3} if strides else {1, 3})
    a, b = plain_lora("a", shapes), plain_lora("b", shapes)
    runs = Runs()
    runs.held(model, [a.at(0.3), b.at(-0.2), a.at(0.1) + b.at(0.1), ()])
    runs.held(model, [a.at(0.1), a.at(0.2), a.at(0.3)])
    assert runs.calls == [4, 4, 4, 3, 3, 3]


def test_strengths_of_one_lora_are_one_batch(model: DiffusionModel, loras: list[PlainLora]) -> None:
    runs = Runs()
    runs.held(model, [loras[0].at(n / 8) for n in range(1, 9)])
    assert runs.calls == [8, 8, 8]


def test_what_all_have_in_common_is_merged(model: DiffusionModel, loras: list[PlainLora]) -> None:
    shapes = {name: shape for name, shape in model.weights.shapes.items() if ".attn1" in name}
    whole = plain_lora("whole", shapes, dense=True)
    runs = Runs()
    runs.held(model, [whole.at(0.4) + loras[0].at(0.5), whole.at(0.4) + loras[1].at(0.5), whole.at(0.4)])
    assert runs.calls == [3, 3, 3]


def test_what_has_no_factors_is_merged_and_runs_after_the_others(
    model: DiffusionModel, loras: list[PlainLora]
) -> None:
    shapes = {name: shape for name, shape in model.weights.shapes.items() if ".attn1.to_q" in name}
    whole = plain_lora("whole", shapes, dense=True)
    runs = Runs()
    runs.held(model, [loras[0].at(0.5), whole.at(0.4), loras[1].at(0.5), whole.at(0.4), whole.at(0.2)])
    assert runs.calls == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert "has no factors" in str((runs.said[1] or {})["loras"])


def test_where_products_cost_more_than_rebuilding_runs_go_one_after_another(
    model: DiffusionModel, loras: list[PlainLora]
) -> None:
    runs = Runs(MERGED)
    runs.held(model, [loras[0].at(0.5), loras[1].at(0.5), loras[1].at(0.5)])
    assert runs.calls == [3, 1, 1, 2, 2]
    assert str((runs.said[0] or {})["loras"]).startswith("LoRAs merged into the weights (about ")


def test_no_more_than_so_many_are_in_a_batch(model: DiffusionModel, loras: list[PlainLora]) -> None:
    runs = Runs(most=2)
    runs.held(model, [loras[0].at(0.5), loras[1].at(0.5), loras[2].at(0.5)])
    assert runs.calls == [2, 2, 2, 1, 1, 1]


def test_memory_decides_how_many_are_in_a_batch(
    model: DiffusionModel, loras: list[PlainLora], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(self: Memory, needed: int, batch: int, *given: object) -> None:
        if batch > 2:
            raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr(Memory, "_reserve", reserve)
    runs = Runs()
    runs.held(model, [lora.at(0.5) for lora in loras] + [(), loras[0].at(0.1)])
    assert runs.calls[0] == 5 and {*runs.calls[1:]} == {1, 2} and max(runs.calls[1:]) == 2


def test_other_shapes_run_beside_each_other_without_joining(
    model: DiffusionModel, loras: list[PlainLora]
) -> None:
    runs = Runs()
    first, second = with_stack(model, loras[0].at(0.5)), with_stack(model, loras[1].at(0.5))
    with torch.no_grad():
        wanted = [sampled(runs.memory.network(first), 1), sampled(runs.memory.network(second), 2, batch=2)]
    found = runs(
        [
            lambda memory: sampled(memory.network(first), 1),
            lambda memory: sampled(memory.network(second), 2, batch=2),
        ]
    )
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, Tensor)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_one_that_fails_fails_alone(model: DiffusionModel, loras: list[PlainLora]) -> None:
    class Broken(PlainLora):
        def patches(self) -> Mapping[str, Sequence[object]]:  # type: ignore[override]
            raise RuntimeError("this LoRA is damaged")

    runs = Runs()
    bad = Broken("broken", {})
    found = runs(
        [
            lambda memory: sampled(memory.network(with_stack(model, loras[0].at(0.5))), 1),
            lambda memory: sampled(memory.network(with_stack(model, bad.at(0.5))), 2),
            lambda memory: sampled(memory.network(with_stack(model, loras[1].at(0.5))), 3),
        ]
    )
    assert isinstance(found[0], Tensor) and isinstance(found[2], Tensor)
    assert isinstance(found[1], RuntimeError) and "damaged" in str(found[1])


def test_one_that_is_cancelled_leaves_the_others(model: DiffusionModel, loras: list[PlainLora]) -> None:
    stop = threading.Event()
    runs = Runs(most=1)

    def first(memory: Memory) -> Tensor:
        found = sampled(memory.network(with_stack(model, loras[0].at(0.5))), 1)
        stop.set()
        return found

    found = runs(
        [first, lambda memory: sampled(memory.network(with_stack(model, loras[1].at(0.5))), 2)],
        cancelled={1: stop.is_set},
    )
    assert isinstance(found[0], Tensor) and isinstance(found[1], Cancelled)


def test_loras_of_single_conditionings_join_those_of_the_model(
    model: DiffusionModel, loras: list[PlainLora]
) -> None:
    a, b, c = loras
    runs, plain = Runs(), with_stack(model, a.at(0.5))
    with torch.no_grad():
        wanted = [
            sampled(runs.memory.network(model, (a.at(0.5), b.at(0.2))), 1, batch=2),
            sampled(runs.memory.network(plain, (c.at(0.3),)), 2, batch=2),
        ]
    found = runs(
        [
            lambda memory: sampled(memory.network(model, (a.at(0.5), b.at(0.2))), 1, batch=2),
            lambda memory: sampled(memory.network(plain, (c.at(0.3),)), 2, batch=2),
        ]
    )
    assert runs.calls == [2, 2, 2]
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, Tensor) and float((one - other).norm()) <= 1e-5 * float(other.norm())


def test_fused_layers_of_a_transformer(tmp_path: Path) -> None:
    flux = open_diffusion_model(tiny_models.write_flux(tmp_path / "flux.safetensors"))
    fused = ("qkv.weight", "linear1.weight")
    shapes = {name: shape for name, shape in flux.weights.shapes.items() if name.endswith(fused)}
    first, second = plain_lora("first", shapes), plain_lora("second", shapes)
    memory = Memory("cpu", "fp32")
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        inputs = memory.network(flux).inputs(Cond(torch.ones(1, 20, 64)), SampleContext(noise=x, latent=x))
        wanted = torch.cat(
            [
                memory.network(flux, (lora.at(0.5),))(x[row : row + 1], torch.tensor([0.5]), inputs)
                for row, lora in enumerate((first, second))
            ]
        )
        both = inputs.joined([inputs], 2)
        found = memory.network(flux, (first.at(0.5), second.at(0.5)))(x, torch.full((2,), 0.5), both)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
