"""Nodes that change how a model is sampled: what they put on the handle, and that it counts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.nodes import model_sampling as nodes
from loraloom.sampling.parametrisation import Continuous, Discrete, Distilled, Flow, FluxFlow
from loraloom.sampling.rules import (
    TCFG,
    CFGNorm,
    CFGZeroStar,
    DifferentialMask,
    PerpendicularNegative,
    RenormCFG,
    RescaleCFG,
    SkipNegativeLayers,
)
from loraloom.sampling.types import Cond
from tests import tiny_models
from tests.nodes.runs import PlainRun


@pytest.fixture
def model(tmp_path: Path) -> DiffusionModel:
    found, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    assert found is not None
    return found


def test_discrete_parametrisations(model: DiffusionModel) -> None:
    p = nodes.discrete(model, sampling="v_prediction", zsnr=True).current_parametrisation()
    assert isinstance(p, Discrete) and p.prediction == "v" and p.sigma_max > 4000
    assert nodes.discrete(model, sampling="eps").current_parametrisation() == Discrete("eps")
    assert isinstance(nodes.discrete(model, sampling="lcm").current_parametrisation(), Distilled)
    assert model.current_parametrisation() == Discrete("eps")


def test_continuous_parametrisations(model: DiffusionModel) -> None:
    p = nodes.continuous_edm(model=model, sampling="edm", sigma_max=80.0).current_parametrisation()
    assert p == Continuous("edm", 0.002, 80.0, sigma_data=0.5)
    p = nodes.continuous_v(model=model, sampling="v_prediction").current_parametrisation()
    assert p == Continuous("v", 0.03, 500.0, time="angle")
    with pytest.raises(InputError, match="not supported"):
        nodes.continuous_edm(model=model, sampling="cosmos_rflow")
    with pytest.raises(InputError, match="sigma_min"):
        nodes.continuous_edm(model=model, sampling="edm", sigma_max=1.0, sigma_min=2.0)


def test_flow_shifts(model: DiffusionModel) -> None:
    assert nodes.shifted_flow(model, 5.0).current_parametrisation() == Flow(5.0, 1000.0)
    assert nodes.shifted_unit_flow(model).current_parametrisation() == Flow(1.73, 1.0)
    with pytest.raises(InputError, match="above 0"):
        nodes.shifted_flow(model, 0.0)


@pytest.mark.parametrize(("side", "mu"), [(256, 0.5), (1024, 1.15)])
def test_flux_shifts_with_the_size(model: DiffusionModel, side: int, mu: float) -> None:
    p = nodes.flux_flow(model=model, width=side, height=side).current_parametrisation()
    assert isinstance(p, FluxFlow) and math.isclose(p.mu, mu)


def test_rules_gather_on_the_handle(model: DiffusionModel) -> None:
    changed = nodes.cfg_norm(nodes.rescale_cfg(model, 0.5), 0.9)
    changed = nodes.differential_diffusion(nodes.tangential_damping(nodes.cfg_zero_star(changed)), 0.5)
    options = nodes.sampling_options(changed)
    assert options.combine == RescaleCFG(0.5)
    assert options.before == (TCFG(),)
    assert options.after == (CFGNorm(0.9), CFGZeroStar())
    assert options.mask == DifferentialMask(0.5)
    assert nodes.sampling_options(nodes.renorm_cfg(changed, 50.0)).combine == RenormCFG(50.0, 1.0)
    assert nodes.sampling_options(model).combine is None
    assert hash(changed) == hash(changed) and changed != model


def test_perp_neg_brings_its_conditioning(model: DiffusionModel) -> None:
    empty = (Cond(torch.zeros(1, 77, 64)),)
    options = nodes.sampling_options(nodes.perp_neg(model, empty, 0.7))
    assert options.combine == PerpendicularNegative(0.7)
    assert [(name, side.conditioning) for name, side in options.extra] == [("empty", empty)]


def test_skipped_layers_are_read_from_text(model: DiffusionModel, tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    flux = open_diffusion_model(tiny_models.write_flux(tmp_path / "flux.safetensors"))
    changed = nodes.skip_negative_layers(
        model=flux, double_layers="7, 8", single_layers="x3", end_percent=0.5, run=run
    )
    blocks = (("double", 7), ("double", 8), ("single", 3))
    assert nodes.sampling_options(changed).sides == SkipNegativeLayers(blocks, 0.0, 0.5)
    assert nodes.skip_negative_layers(model=flux, double_layers="", single_layers=" ", run=run) is flux
    assert not run.warnings
    assert nodes.skip_negative_layers(model=model, double_layers="7", single_layers="", run=run) is model
    assert "Stable Diffusion 1.5 has no double blocks to skip (none of it can be skipped)" in run.warnings[0]
    assert "leave double_layers empty" in run.warnings[0]
