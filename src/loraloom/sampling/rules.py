"""Rules that nodes attach to a model: other formulas of guidance, and what happens before and after it.

Each is a small value. Fields of `guidance.SamplingOptions` say where a rule belongs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.sampling.guidance import Blocks, Evaluate, Prediction, classifier_free, perpendicular
from loraloom.sampling.types import Parametrisation

PIXELS = (1, 2, 3)
"""The dimensions of one latent."""


# ---- in place of classifier-free guidance (SamplingOptions.combine) --------------------------------------


@dataclass(frozen=True, slots=True)
class RescaleCFG:
    """Give the guided v the deviation of the conditional one, by a share (Lin et al. 2023, §3.4)."""

    multiplier: float = 0.7

    def __call__(self, at: Prediction) -> Tensor:
        spread = (at.sigma**2 + 1) ** 0.5
        kept = at.x / spread**2

        def velocity(x_0: Tensor) -> Tensor:
            return (kept - x_0) * spread / at.sigma

        cond, guided = velocity(at.cond), velocity(classifier_free(at))
        rescaled = guided * (cond.std(dim=PIXELS, keepdim=True) / guided.std(dim=PIXELS, keepdim=True))
        final = self.multiplier * rescaled + (1 - self.multiplier) * guided
        return kept - final * at.sigma / spread


@dataclass(frozen=True, slots=True)
class RenormCFG:
    """Guide below sigma `below`, and keep the result at most `limit` times as long as the conditional one
    (Lumina-Image 2.0, 2025). limit 0: as long as it gets."""

    below: float = 100.0
    limit: float = 1.0

    def __call__(self, at: Prediction) -> Tensor:
        if at.sigma >= self.below:
            return at.cond
        guided = classifier_free(at)
        if self.limit <= 0:
            return guided
        longest = torch.linalg.vector_norm(at.cond, dim=PIXELS, keepdim=True) * self.limit
        return guided * (longest / torch.linalg.vector_norm(guided, dim=PIXELS, keepdim=True)).clamp(max=1)


@dataclass(frozen=True, slots=True)
class PerpendicularNegative:
    """`guidance.PerpNeg` as a rule; the options' extra conditioning "empty" stands for no prompt."""

    negative_scale: float = 1.0

    def __call__(self, at: Prediction) -> Tensor:
        (empty,) = at.evaluate("empty")
        return perpendicular(at.cond, at.uncond, empty, at.scale, self.negative_scale)


# ---- before it (SamplingOptions.before) ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TCFG:
    """Tangential damping (Kwon et al. 2025): of the unconditional score, keep what lies along the direction
    that both sides share most."""

    def __call__(self, at: Prediction) -> tuple[Tensor, Tensor]:
        cond, uncond = (at.x - at.cond).flatten(1), (at.x - at.uncond).flatten(1)
        shared = torch.linalg.svd(torch.stack([cond, uncond], dim=1), full_matrices=False).Vh[:, 0]
        damped = (uncond * shared).sum(dim=1, keepdim=True) * shared
        return at.cond, at.x - damped.reshape(at.x.shape)


# ---- after it (SamplingOptions.after) --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CFGNorm:
    """Keep each latent pixel at most as long as the conditional one's, then scale by `strength`."""

    strength: float = 1.0

    def __call__(self, at: Prediction) -> Tensor:
        wanted = torch.linalg.vector_norm(at.cond, dim=1, keepdim=True)
        found = torch.linalg.vector_norm(at.denoised, dim=1, keepdim=True)
        return at.denoised * (wanted / (found + 1e-8)).clamp(0, 1) * self.strength


@dataclass(frozen=True, slots=True)
class CFGZeroStar:
    """Scale the unconditional side to fit the conditional one best (Fan et al. 2025)."""

    def __call__(self, at: Prediction) -> Tensor:
        cond, uncond = at.x - at.cond, at.x - at.uncond
        fit = (cond * uncond).sum(dim=PIXELS, keepdim=True)
        fit = fit / ((uncond * uncond).sum(dim=PIXELS, keepdim=True) + 1e-8)
        change = at.uncond * (fit - 1)
        return at.denoised + change - at.scale * change


# ---- another way to the two sides (SamplingOptions.sides) ------------------------------------------------


@dataclass(frozen=True, slots=True)
class SkipNegativeLayers:
    """The negative side runs without some blocks, between two points of the sampling range (Stability AI's
    skip-layer guidance, in its simple form)."""

    blocks: Blocks
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __call__(self, evaluate: Evaluate, sigma: Tensor, p: Parametrisation) -> tuple[Tensor, Tensor]:
        if p.percent_to_sigma(self.end_percent) <= sigma <= p.percent_to_sigma(self.start_percent):
            (cond,), (uncond,) = evaluate("positive"), evaluate("negative", skip=self.blocks)
        else:
            cond, uncond = evaluate("positive", "negative")
        return cond, uncond


# ---- the noise mask (SamplingOptions.mask) ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DifferentialMask:
    """A soft mask opens as sampling goes on: each pixel from the time that its value names (Levin & Fried
    2023). strength below 1 blends with the soft mask itself."""

    strength: float = 1.0

    def __call__(self, mask: Tensor, sigma: Tensor, sigmas: Tensor, p: Parametrisation) -> Tensor:
        last = torch.clamp(sigmas[-1], min=p.sigma_min)
        start, end, now = (p.timestep(level).float() for level in (sigmas[0], last, sigma))
        opened = (mask >= (now - end) / (start - end)).to(mask.dtype)
        if 0 < self.strength < 1:
            return self.strength * opened + (1 - self.strength) * mask
        return opened
