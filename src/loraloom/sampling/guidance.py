"""How predictions for several conditionings become one: classifier-free guidance and its relatives.

A `Guidance` names its conditionings and combines their predictions. What nodes attach to a model changes how:
`SamplingOptions.combine` replaces the formula of classifier-free guidance, `before` changes the two sides
first, `after` refines the result, in order. All of these are functions of a `Prediction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from loraloom.sampling.types import Conditioning, Parametrisation

Blocks: TypeAlias = "tuple[tuple[str, int], ...]"
Side: TypeAlias = "tuple[Conditioning, str]"
"""A conditioning and the role that it plays for the network: "positive" or "negative"."""


class Evaluate(Protocol):
    """Clean latents that the network predicts at the current x and sigma, one for each named conditioning
    and all in one batch where shapes allow; `skip`: without these blocks."""

    def __call__(self, *names: str, skip: Blocks = ()) -> list[Tensor]: ...


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """One guided evaluation in progress: x (B, C, H, W) at sigma, both sides' x0, and the result so far."""

    x: Tensor
    sigma: Tensor
    cond: Tensor
    uncond: Tensor
    scale: float
    denoised: Tensor
    parametrisation: Parametrisation
    evaluate: Evaluate


Rule: TypeAlias = Callable[[Prediction], Tensor]
SidesRule: TypeAlias = "Callable[[Prediction], tuple[Tensor, Tensor]]"
"""→ other (cond, uncond)."""

MaskRule: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Parametrisation], Tensor]"
"""(mask, sigma, sigmas of the run, parametrisation) → the mask at this sigma."""

SidesSource: TypeAlias = "Callable[[Evaluate, Tensor, Parametrisation], tuple[Tensor, Tensor]]"
"""(evaluate, sigma, parametrisation) → (cond, uncond): another way to compute the two sides."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What nodes attach to a model for sampling; hashable where its rules are.

    extra: conditionings that rules evaluate, by name.
    always_uncond: compute the negative side at scale 1 too.
    """

    combine: Rule | None = None
    before: tuple[SidesRule, ...] = ()
    after: tuple[Rule, ...] = ()
    sides: SidesSource | None = None
    mask: MaskRule | None = None
    extra: tuple[tuple[str, ExtraSide], ...] = ()
    always_uncond: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class ExtraSide:
    """A conditioning that a rule needs; compared by identity, since tensors are."""

    conditioning: Conditioning
    role: str = "negative"


@dataclass(frozen=True, eq=False, slots=True)
class Moment:
    """What a guidance is given at each evaluation. needs_uncond: the sampler reads `Guided.uncond`."""

    x: Tensor
    sigma: Tensor
    parametrisation: Parametrisation
    evaluate: Evaluate
    options: SamplingOptions = field(default_factory=SamplingOptions)
    needs_uncond: bool = False

    def combined(self, cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor:
        """Classifier-free guidance as the options want it; uncond None: not computed, counts as 0."""
        negative = torch.zeros_like(cond) if uncond is None else uncond
        at = Prediction(self.x, self.sigma, cond, negative, scale, cond, self.parametrisation, self.evaluate)
        for before in self.options.before if uncond is not None else ():
            cond, negative = before(at)
            at = replace(at, cond=cond, uncond=negative)
        return self.refined(replace(at, denoised=(self.options.combine or classifier_free)(at)))

    def refined(self, at: Prediction) -> Tensor:
        for after in self.options.after:
            at = replace(at, denoised=after(at))
        return at.denoised


@dataclass(frozen=True, eq=False, slots=True)
class Guided:
    """denoised: (B, C, H, W) the guided x0. uncond: the negative side's."""

    denoised: Tensor
    uncond: Tensor


class Guidance(Protocol):
    """Several conditionings and how their predictions combine."""

    def sides(self) -> Mapping[str, Side]: ...

    def __call__(self, at: Moment) -> Guided: ...


def classifier_free(at: Prediction) -> Tensor:
    """Ho & Salimans 2022."""
    return at.uncond + (at.cond - at.uncond) * at.scale


@dataclass(frozen=True, eq=False, slots=True)
class CFG:
    """Classifier-free guidance; at scale 1 the negative side is not computed unless something reads it."""

    positive: Conditioning
    negative: Conditioning
    scale: float = 1.0

    def sides(self) -> Mapping[str, Side]:
        return {"positive": (self.positive, "positive"), "negative": (self.negative, "negative")}

    def __call__(self, at: Moment) -> Guided:
        if math.isclose(self.scale, 1.0) and not (at.needs_uncond or at.options.always_uncond):
            (cond,) = at.evaluate("positive")
            uncond = None
        elif at.options.sides is not None:
            cond, uncond = at.options.sides(at.evaluate, at.sigma, at.parametrisation)
        else:
            cond, uncond = at.evaluate("positive", "negative")
        return Guided(
            at.combined(cond, uncond, self.scale), torch.zeros_like(cond) if uncond is None else uncond
        )


@dataclass(frozen=True, eq=False, slots=True)
class Unguided:
    """One conditioning, as it is."""

    positive: Conditioning

    def sides(self) -> Mapping[str, Side]:
        return {"positive": (self.positive, "positive")}

    def __call__(self, at: Moment) -> Guided:
        (cond,) = at.evaluate("positive")
        return Guided(at.combined(cond, None, 1.0), torch.zeros_like(cond))


@dataclass(frozen=True, eq=False, slots=True)
class DualCFG:
    """Two positive conditionings and a negative one (Brooks et al. 2023, InstructPix2Pix).

    nested: guide the first from the second, then the result from the negative; else both guidances add up.
    """

    positive: Conditioning
    middle: Conditioning
    negative: Conditioning
    scale: float = 1.0
    middle_scale: float = 1.0
    nested: bool = False

    def sides(self) -> Mapping[str, Side]:
        return {
            "positive": (self.positive, "positive"),
            "middle": (self.middle, "negative"),
            "negative": (self.negative, "negative"),
        }

    def __call__(self, at: Moment) -> Guided:
        if self.nested:
            positive, middle, negative = at.evaluate("positive", "middle", "negative")
            inner = at.combined(positive, middle, self.scale)
            return Guided(negative + self.middle_scale * (inner - negative), negative)
        names = ["positive", "middle", "negative"]
        if math.isclose(self.middle_scale, 1.0) and not (at.needs_uncond or at.options.always_uncond):
            names = ["positive"] if math.isclose(self.scale, 1.0) else ["positive", "middle"]
        known = dict(zip(names, at.evaluate(*names), strict=True))
        positive = known["positive"]
        middle = known.get("middle", torch.zeros_like(positive))
        negative = known.get("negative", torch.zeros_like(positive))
        return Guided(
            at.combined(middle, negative, self.middle_scale) + (positive - middle) * self.scale, negative
        )


@dataclass(frozen=True, eq=False, slots=True)
class PerpNeg:
    """Only the part of the negative that is perpendicular to the positive counts (Armandpour et al. 2023)."""

    positive: Conditioning
    negative: Conditioning
    empty: Conditioning
    scale: float = 1.0
    negative_scale: float = 1.0

    def sides(self) -> Mapping[str, Side]:
        return {
            "positive": (self.positive, "positive"),
            "negative": (self.negative, "negative"),
            "empty": (self.empty, "negative"),
        }

    def __call__(self, at: Moment) -> Guided:
        positive, negative, empty = at.evaluate("positive", "negative", "empty")
        denoised = perpendicular(positive, negative, empty, self.scale, self.negative_scale)
        prediction = Prediction(
            at.x, at.sigma, positive, negative, self.scale, denoised, at.parametrisation, at.evaluate
        )
        return Guided(at.refined(prediction), negative)


def perpendicular(
    positive: Tensor, negative: Tensor, empty: Tensor, scale: float, negative_scale: float
) -> Tensor:
    """empty + scale · (positive's direction - the negative's direction without its part along it)."""
    towards, away = positive - empty, negative - empty
    along = (away * towards).sum() / towards.norm() ** 2
    return empty + scale * (towards - negative_scale * (away - along * towards))
