"""Schedule nodes on values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import DiffusionModel
from loraloom.nodes import sigmas
from loraloom.sampling import schedules
from loraloom.sampling.parametrisation import Flow
from tests import tiny_models

FIGURES = Path(__file__).parents[1] / "data/families"
LEVELS = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])


@pytest.fixture
def model(tmp_path: Path) -> DiffusionModel:
    found, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    assert found is not None
    return found


def test_model_schedules_follow_the_models_parametrisation(model: DiffusionModel) -> None:
    flow = model.with_parametrisation(Flow(2.0))
    for chosen in (model, flow):
        p = chosen.current_parametrisation()
        found = sigmas.basic(model=chosen, scheduler="normal", steps=5, denoise=0.5)
        assert torch.equal(found, schedules.sigmas_for(p, "normal", 5, 0.5))
        assert torch.equal(sigmas.beta(chosen, 5), schedules.sigmas_for(p, "beta", 5))
    assert sigmas.sd_turbo(model, 2)[0] == pytest.approx(14.6146, abs=1e-3)
    assert sigmas.basic(model=model, scheduler="normal", steps=5, denoise=0.0).numel() == 0


def test_flux2s_levels_are_comfyuis() -> None:
    for case in json.loads((FIGURES / "flux2_levels.json").read_text("utf-8")):
        found = sigmas.flux2(case["steps"], case["width"], case["height"])
        torch.testing.assert_close(found, torch.tensor(case["sigmas"]), rtol=1e-6, atol=1e-7)


def test_schedules_of_numbers() -> None:
    assert torch.equal(sigmas.karras(4, 10.0, 0.1, 5.0), schedules.karras(4, 0.1, 10.0, 5.0))
    assert sigmas.exponential(3, 4.0, 1.0).tolist() == pytest.approx([4.0, 2.0, 1.0, 0.0])
    assert sigmas.polyexponential(3, 4.0, 1.0, 1.0).tolist() == pytest.approx([4.0, 2.0, 1.0, 0.0])
    assert len(sigmas.laplace(steps=7)) == 7
    assert len(sigmas.variance_preserving(7)) == 8
    assert len(sigmas.align_your_steps(model_type="SDXL", steps=12, denoise=0.5)) == 7
    with pytest.raises(InputError, match="above 0"):
        sigmas.exponential(3, 4.0, 0.0)


def test_levels_as_they_are_written() -> None:
    assert sigmas.manual("14.6, 3 .5;0").tolist() == pytest.approx([14.6, 3.0, 0.5, 0.0])
    assert sigmas.manual("none").numel() == 0


def test_split_shares_the_level_between() -> None:
    high, low = sigmas.split(LEVELS, 2)
    assert high.tolist() == [10, 5, 2] and low.tolist() == [2, 1, 0]


@pytest.mark.parametrize(("denoise", "steps"), [(1.0, 4), (0.5, 2), (0.3, 1), (0.0, 0)])
def test_split_by_denoise(denoise: float, steps: int) -> None:
    high, low = sigmas.split_by_denoise(LEVELS, denoise)
    assert torch.equal(low, LEVELS[4 - steps :])
    assert torch.equal(high, LEVELS[: 5 - steps] if steps else LEVELS[:0])


def test_flip_starts_just_above_zero() -> None:
    assert sigmas.flip(LEVELS).tolist() == pytest.approx([0.0001, 1, 2, 5, 10])
    assert LEVELS[-1] == 0
    assert sigmas.flip(LEVELS[:0]).numel() == 0


def test_set_first() -> None:
    assert sigmas.set_first(LEVELS, 20.0).tolist() == [20, 5, 2, 1, 0]
    assert LEVELS[0] == 10


@pytest.mark.parametrize(
    ("spacing", "middle"), [("linear", 7.5), ("cosine", 10 - 5 * 0.7071068), ("sine", 10 - 5 * 0.2928932)]
)
def test_extend_divides_steps_between_levels(spacing: str, middle: float) -> None:
    found = sigmas.extend(sigmas=LEVELS, steps=2, start_at_sigma=-1, end_at_sigma=6.0, spacing=spacing)
    assert found.tolist() == pytest.approx([10, middle, 5, 2, 1, 0])
    assert torch.equal(sigmas.extend(sigmas=LEVELS, steps=1, spacing=spacing), LEVELS)


def test_percent_to_sigma(model: DiffusionModel) -> None:
    p = model.current_parametrisation()
    assert sigmas.percent_to_sigma(model, 0.3) == p.percent_to_sigma(0.3)
    assert sigmas.percent_to_sigma(model, 0.0) > 1e8
    assert sigmas.percent_to_sigma(model, 0.0, True) == p.sigma_max
    assert sigmas.percent_to_sigma(model, 1.0, True) == p.sigma_min
