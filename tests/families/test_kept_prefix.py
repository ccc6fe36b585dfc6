"""Qwen-Image 2.1 keeps what it makes of prompt and pictures from step to step, and makes it anew in time."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.diffusion_network import Run
from loraloom.models.families.qwen_image21.family import FAMILY
from loraloom.models.handles import DiffusionModel
from loraloom.models.parts.kept_tokens import MOST_KEPT, Kept, to_keep
from loraloom.models.residency.memory import Memory
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, Network, SampleContext
from loraloom.weights.rotation import rotated
from tests.families.models import qwen_image21

TEXT, REFERENCE, NEW = 5, 6, 12
PREFIX = TEXT + REFERENCE
X = torch.randn(1, 64, 3, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    path = qwen_image21.network().write(tmp_path_factory.mktemp("kept") / "qwen_image21.safetensors")
    return open_diffusion_model(path)


def cond(seed: int = 0) -> Cond:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, TEXT, qwen_image21.TEXT, generator=generator)
    reference = torch.randn(1, 64, 2, 3, generator=generator)
    return Cond(
        context,
        options={"reference_latents": (reference,)},
        extras={"image_slots": torch.tensor([[2]])},
    )


def step(network: Network, given: Cond, time: float, x: Tensor = X) -> Tensor:
    inputs = Inputs.joined([network.inputs(given, SampleContext(x, x))], len(x))
    with torch.inference_mode():
        return network(x, torch.full((len(x),), time), inputs)


class Watched:
    """A network that says how many tokens its blocks were given in each call."""

    def __init__(self, model: DiffusionModel) -> None:
        memory = Memory("cpu", "fp32")
        self.network, self.tokens = memory.network(model), list[int]()
        blocks = cast("nn.ModuleList", memory.resident_module(model).transformer_blocks)
        blocks[0].register_forward_pre_hook(lambda block, given: self.tokens.append(given[0].shape[1]))


def test_later_steps_compute_the_new_picture_alone(model: DiffusionModel) -> None:
    kept, plain = Watched(model.with_option("keeps_prefix", True)), Watched(model)
    for time in (0.9, 0.5, 0.1):
        for given in (cond(1), cond(2)):
            expected = step(plain.network, given, time)
            torch.testing.assert_close(step(kept.network, given, time), expected, rtol=1e-4, atol=1e-5)
    assert plain.tokens == [PREFIX + NEW] * 6
    assert kept.tokens == [PREFIX, NEW] * 2 + [NEW] * 4


def test_other_texts_pictures_sizes_and_batches_are_made_anew(model: DiffusionModel) -> None:
    kept, plain = Watched(model.with_option("keeps_prefix", True)), Watched(model)
    one = cond(1)
    cases = [
        (one, X),
        (Cond(cond(2).context, options=one.options, extras=one.extras), X),
        (Cond(one.context, options=cond(3).options, extras=one.extras), X),
        (one, torch.randn(1, 64, 4, 3)),
        (one, torch.randn(2, 64, 3, 4)),
    ]
    for given, x in cases:
        expected = step(plain.network, given, 0.5, x)
        torch.testing.assert_close(step(kept.network, given, 0.5, x), expected, rtol=1e-4, atol=1e-5)
    assert plain.tokens == [PREFIX + NEW] * 5
    assert kept.tokens == [PREFIX, NEW] * MOST_KEPT + [PREFIX + NEW]


@pytest.mark.parametrize(("storage", "levels"), [("int8", 127), ("int4", 7)])
def test_kept_values_may_be_rounded(model: DiffusionModel, storage: str, levels: int) -> None:
    """Each token's and head's to one scale, after a turn, already for the step that fills (ComfyUI 0.38)."""
    told = model.with_option("keeps_prefix", True).with_option("kept_as", storage)
    kept, plain = Watched(told), Watched(model)
    expected = [step(plain.network, cond(1), time) for time in (0.9, 0.5)]
    found = [step(kept.network, cond(1), time) for time in (0.9, 0.5)]
    for one, other in zip(found, expected, strict=True):
        assert 0.01 / levels < float((one - other).norm() / other.norm()) < 2 / levels
    held = cast(Kept, kept.network.kept[0])
    keys, values = held.layers[0].get()
    assert keys.shape == values.shape == (1, PREFIX, 2, qwen_image21.HEAD)
    turned = rotated(keys, 64)
    scale = turned.abs().amax(-1, keepdim=True) / levels
    torch.testing.assert_close(turned / scale, (turned / scale).round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("wanted", "room", "expected"),
    [("auto", True, "meta"), ("auto", False, "cpu"), ("gpu", False, None), ("cpu", True, "cpu")],
)
def test_kept_values_may_lie_with_the_host(
    wanted: str, room: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = X.to("meta")
    run = Run({}, FAMILY.latents, torch.bfloat16, None, {"kept_on": wanted}, [], lambda more: room)
    found = to_keep(run, (), x, tokens=3, width=8, layers=1)
    assert (None if found is None else found.layers[0].device.type) == expected
    monkeypatch.setattr("loraloom.models.parts.kept_tokens.available_memory", lambda device: 0)
    if expected == "cpu":
        assert to_keep(run, (), x, tokens=3, width=8, layers=1) is None


def test_nothing_is_kept_without_memory_for_it(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def has_room(
        memory: Memory, needed: int, kept: object = None, may_shrink: bool = True, beside: object = ()
    ) -> bool:
        asked.append(needed)
        return len(asked) % 2 == 1  # for the step, not for more

    monkeypatch.setattr(Memory, "has_room", has_room)
    kept = Watched(model.with_option("keeps_prefix", True))
    for _ in range(2):
        step(kept.network, cond(), 0.5)
    assert kept.tokens == [PREFIX + NEW] * 2
    needed, more = asked[:2]
    assert more - needed == 2 * 2 * PREFIX * qwen_image21.WIDTH * 4


def test_a_step_that_failed_leaves_nothing(model: DiffusionModel) -> None:
    kept = Watched(model.with_option("keeps_prefix", True))
    memory = Memory("cpu", "fp32")
    network = memory.network(model.with_option("keeps_prefix", True))
    blocks = cast("nn.ModuleList", memory.resident_module(model).transformer_blocks)
    failing = blocks[1].register_forward_pre_hook(lambda block, given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(network, cond(), 0.5)
    failing.remove()
    torch.testing.assert_close(step(network, cond(), 0.5), step(kept.network, cond(), 0.5))
