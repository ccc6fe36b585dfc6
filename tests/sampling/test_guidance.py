"""Guidance: what is evaluated, and the formulas that combine it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.conditions import prepared
from loraloom.sampling.denoiser import Evaluation, GuidedDenoiser
from loraloom.sampling.guidance import (
    CFG,
    Blocks,
    DualCFG,
    ExtraSide,
    Guidance,
    PerpNeg,
    Prediction,
    SamplingOptions,
    Unguided,
)
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
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond, Conditioning, Network, SampleContext
from tests.sampling.toy import NEGATIVE, POSITIVE, Toy, noise, toy

SIGMA = torch.tensor(2.0)
X = noise(1)
EMPTY: Conditioning = (Cond(torch.zeros(1, 77, 8)),)


def denoiser(
    guidance: Guidance,
    options: SamplingOptions | None = None,
    network: Network | None = None,
    needs_uncond: bool = False,
) -> GuidedDenoiser:
    network = network or toy()
    options = options or SamplingOptions()
    sides = {**guidance.sides(), **{name: (side.conditioning, side.role) for name, side in options.extra}}
    evaluation = Evaluation(network, prepared(network, sides, SampleContext(noise=X, latent=X)))
    return GuidedDenoiser(evaluation, guidance, options, needs_uncond=needs_uncond)


def predicted(conditioning: Conditioning) -> Tensor:
    return denoiser(Unguided(conditioning))(X, SIGMA)


POS, NEG, NONE = predicted(POSITIVE), predicted(NEGATIVE), predicted(EMPTY)


def prediction(scale: float = 4.0, x: Tensor = X) -> Prediction:
    def evaluate(*names: str, skip: Blocks = ()) -> list[Tensor]:
        return [{"positive": POS, "negative": NEG, "empty": NONE}[name] for name in names]

    return Prediction(x, SIGMA, POS, NEG, scale, NEG + scale * (POS - NEG), toy().parametrisation, evaluate)


def test_cfg() -> None:
    network = toy()
    guided = denoiser(CFG(POSITIVE, NEGATIVE, 4.0), network=network)
    torch.testing.assert_close(guided(X, SIGMA), NEG + 4 * (POS - NEG))
    assert guided.uncond is not None
    torch.testing.assert_close(guided.uncond, NEG)
    assert network.calls == [(2, 77)]


def test_scale_one_skips_the_negative_unless_something_reads_it() -> None:
    for options, needed, calls in [
        (SamplingOptions(), False, [(1, 77)]),
        (SamplingOptions(), True, [(2, 77)]),
        (SamplingOptions(always_uncond=True), False, [(2, 77)]),
    ]:
        network = toy()
        guided = denoiser(CFG(POSITIVE, NEGATIVE, 1.0), options, network, needed)
        torch.testing.assert_close(guided(X, SIGMA), POS)
        assert network.calls == calls


def test_dual_cfg_adds_or_nests() -> None:
    both = denoiser(DualCFG(POSITIVE, EMPTY, NEGATIVE, 3.0, 2.0))(X, SIGMA)
    torch.testing.assert_close(both, NEG + 2 * (NONE - NEG) + 3 * (POS - NONE))
    nested = denoiser(DualCFG(POSITIVE, EMPTY, NEGATIVE, 3.0, 2.0, nested=True))(X, SIGMA)
    torch.testing.assert_close(nested, NEG + 2 * (NONE + 3 * (POS - NONE) - NEG))


@pytest.mark.parametrize(
    ("scale", "middle", "batch"), [(1.0, 1.0, 1), (3.0, 1.0, 2), (3.0, 2.0, 3), (1.0, 2.0, 3)]
)
def test_dual_cfg_evaluates_what_counts(scale: float, middle: float, batch: int) -> None:
    network = toy()
    found = denoiser(DualCFG(POSITIVE, EMPTY, NEGATIVE, scale, middle), network=network)(X, SIGMA)
    assert network.calls == [(batch, 77)]
    torch.testing.assert_close(found, NEG + middle * (NONE - NEG) + scale * (POS - NONE))


def test_perp_neg_ignores_what_lies_along_the_positive() -> None:
    along: Conditioning = POSITIVE
    found = denoiser(PerpNeg(POSITIVE, along, EMPTY, 4.0, 1.0))(X, SIGMA)
    torch.testing.assert_close(found, NONE + 4 * (POS - NONE))
    towards, away = POS - NONE, NEG - NONE
    perpendicular = away - (away * towards).sum() / (towards * towards).sum() * towards
    found = denoiser(PerpNeg(POSITIVE, NEGATIVE, EMPTY, 4.0, 0.5))(X, SIGMA)
    torch.testing.assert_close(found, NONE + 4 * (towards - 0.5 * perpendicular))


def test_the_perp_neg_rule_equals_its_guidance() -> None:
    options = SamplingOptions(combine=PerpendicularNegative(0.5), extra=(("empty", ExtraSide(EMPTY)),))
    ruled = denoiser(CFG(POSITIVE, NEGATIVE, 4.0), options)(X, SIGMA)
    torch.testing.assert_close(ruled, denoiser(PerpNeg(POSITIVE, NEGATIVE, EMPTY, 4.0, 0.5))(X, SIGMA))


def test_rules_apply_in_order() -> None:
    options = SamplingOptions(after=(lambda at: at.denoised + 1, lambda at: at.denoised * 2))
    torch.testing.assert_close(
        denoiser(CFG(POSITIVE, NEGATIVE, 4.0), options)(X, SIGMA), (NEG + 4 * (POS - NEG) + 1) * 2
    )


def test_rescale_gives_the_guided_v_the_deviation_of_the_conditional() -> None:
    def v(x_0: Tensor) -> Tensor:
        return (X / (SIGMA**2 + 1) - x_0) * (SIGMA**2 + 1) ** 0.5 / SIGMA

    full = v(RescaleCFG(1.0)(prediction()))
    torch.testing.assert_close(full.std(), v(POS).std(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(RescaleCFG(0.0)(prediction()), prediction().denoised, rtol=1e-4, atol=1e-4)


def test_cfg_norm_never_grows_a_pixel() -> None:
    found = CFGNorm(1.0)(prediction())
    longest = torch.maximum(POS.norm(dim=1), prediction().denoised.norm(dim=1))
    assert (found.norm(dim=1) <= POS.norm(dim=1) + 1e-4).all()
    assert (found.norm(dim=1) <= longest + 1e-4).all()
    torch.testing.assert_close(CFGNorm(0.5)(prediction()), found / 2)


def test_cfg_zero_star_fits_the_unconditional() -> None:
    cond, uncond = X - POS, X - NEG
    fit = (cond * uncond).sum() / (uncond * uncond).sum()
    expected = fit * NEG + 4 * (POS - fit * NEG)
    torch.testing.assert_close(CFGZeroStar()(prediction()), expected, rtol=1e-4, atol=1e-4)


def test_differential_masks_open_as_sampling_goes_on() -> None:
    p = toy().parametrisation
    sigmas = sigmas_for(p, "normal", 10)
    soft = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
    opened = [float(DifferentialMask()(soft, sigma, sigmas, p).mean()) for sigma in sigmas[:-1]]
    assert opened == sorted(opened)
    assert opened[0] == 1 / 16
    assert opened[-1] == 1.0
    half = DifferentialMask(0.5)(soft, sigmas[5], sigmas, p)
    torch.testing.assert_close(half, (DifferentialMask()(soft, sigmas[5], sigmas, p) + soft) / 2)


def test_tcfg_keeps_sides_that_agree() -> None:
    cond, uncond = TCFG()(prediction())
    torch.testing.assert_close(cond, POS)
    assert uncond.shape == NEG.shape
    same = prediction()
    agreeing = Prediction(same.x, same.sigma, POS, POS, 4.0, POS, same.parametrisation, same.evaluate)
    torch.testing.assert_close(TCFG()(agreeing)[1], POS, rtol=1e-3, atol=1e-3)


def test_renorm_cfg_limits_the_result() -> None:
    found = RenormCFG(100.0, 1.0)(prediction())
    assert found.norm() <= max(float(POS.norm()), float(prediction().denoised.norm())) + 1e-3
    torch.testing.assert_close(RenormCFG(100.0, 0.0)(prediction()), prediction().denoised)


@dataclass
class Skipping(Toy):
    """A toy that doubles its output where blocks are skipped, and remembers which."""

    skipped: tuple[tuple[str, int], ...] = ()

    def skipping(self, blocks: tuple[tuple[str, int], ...]) -> Skipping:
        return Skipping(self.parametrisation, calls=self.calls, hook=lambda x, out: 2 * out, skipped=blocks)


def test_the_negative_may_run_without_some_layers() -> None:
    network = Skipping(toy().parametrisation)
    rule = SkipNegativeLayers((("double", 7),), 0.0, 1.0)
    skipped = network.skipping(rule.blocks)
    half = denoiser(Unguided(NEGATIVE), network=skipped)(X, SIGMA)
    network.calls.clear()
    found = denoiser(CFG(POSITIVE, NEGATIVE, 4.0), SamplingOptions(sides=rule), network)(X, SIGMA)
    torch.testing.assert_close(found, half + 4 * (POS - half))
    assert network.calls == [(1, 77), (1, 77)]
    outside = SkipNegativeLayers((("double", 7),), 0.0, 0.1)
    found = denoiser(CFG(POSITIVE, NEGATIVE, 4.0), SamplingOptions(sides=outside), network)(X, SIGMA)
    torch.testing.assert_close(found, NEG + 4 * (POS - NEG))


def test_a_network_that_cannot_skip_layers_says_so() -> None:
    rule = SkipNegativeLayers((("double", 7),), 0.0, 1.0)
    with pytest.raises(InputError, match="cannot skip layers"):
        denoiser(CFG(POSITIVE, NEGATIVE, 4.0), SamplingOptions(sides=rule))(X, SIGMA)


def test_rules_are_values() -> None:
    for rule in (RescaleCFG(0.7), CFGNorm(1.0), CFGZeroStar(), TCFG(), RenormCFG(1.0, 2.0)):
        assert hash(rule) == hash(rule)
    assert RescaleCFG(0.7) == RescaleCFG(0.7)
    assert hash(SamplingOptions(combine=RescaleCFG(0.7))) == hash(SamplingOptions(combine=RescaleCFG(0.7)))
