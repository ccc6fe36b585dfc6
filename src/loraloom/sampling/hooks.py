"""LoRAs that belong to single conditionings, with strengths that change as sampling goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeAlias

from loraloom.sampling.types import Network, Parametrisation


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A factor of a hook's strength from a point of the sampling range on.

    guarantee_steps: it lasts for so many levels at least, even where the next one has come.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    guarantee_steps: int = 1


Keyframes: TypeAlias = "tuple[Keyframe, ...]"
"""In the order of their starts. The first one counts from the beginning."""


@dataclass(frozen=True, slots=True)
class LoraHook:
    """A LoRA file at strengths for the network and for the text encoders; keyframes scale the former.

    is_model: the file is a checkpoint instead, whose difference from the model is what is added.
    name: what the user calls the file. encoded: the prompt was encoded with it.
    """

    path: str
    strength_model: float
    strength_clip: float = 0.0
    keyframes: Keyframes = ()
    is_model: bool = False
    name: str = field(default="", compare=False)
    encoded: bool = field(default=False, compare=False)

    @property
    def label(self) -> str:
        return self.name or PurePath(self.path).name


Hooks: TypeAlias = "tuple[LoraHook, ...]"

Change: TypeAlias = "tuple[tuple[LoraHook, float], ...]"
"""What a network carries beside its weights at one level: LoRAs and their strengths there."""

Adapt: TypeAlias = "Callable[[tuple[Change, ...]], Network]"
"""Makes the network that carries changes: one for a whole batch, or one for each of as many equal parts."""


class HookStrengths:
    """The strengths of hooks level by level, for one run from its first level down."""

    def __init__(self, parametrisation: Parametrisation) -> None:
        self._parametrisation = parametrisation
        self._progress: dict[Keyframes, _Progress] = {}

    def at(self, hooks: Hooks, sigma: float) -> Change:
        """What counts at a level. Levels are asked for in the order in which a sampler visits them."""
        found = ((hook, hook.strength_model * self._factor(hook.keyframes, sigma)) for hook in hooks)
        return tuple((hook, strength) for hook, strength in found if strength != 0)

    def _factor(self, keyframes: Keyframes, sigma: float) -> float:
        if not keyframes:
            return 1.0
        if keyframes not in self._progress:
            starts = [self._parametrisation.percent_to_sigma(frame.start_percent) for frame in keyframes]
            self._progress[keyframes] = _Progress(keyframes, starts, first=sigma)
        return self._progress[keyframes].factor(sigma)


@dataclass
class _Progress:
    """Which keyframe counts. starts: their sigmas. first: the run's first level."""

    keyframes: Keyframes
    starts: list[float]
    first: float
    index: int = 0
    used: int = 0
    level: float | None = None

    def factor(self, sigma: float) -> float:
        if sigma != self.level:
            self.level = sigma
            self._advance(sigma)
            self.used += 1
        return self.keyframes[self.index].strength

    def _advance(self, sigma: float) -> None:
        if self.used < self._guaranteed(self.index):
            return
        for i in range(self.index + 1, len(self.keyframes)):
            if self.starts[i] < sigma:
                break
            self.index, self.used = i, 0
            if self._guaranteed(i) > 0:
                break

    def _guaranteed(self, index: int) -> int:
        """Keyframes that start before the run does need not be shown."""
        return 0 if self.starts[index] > self.first else self.keyframes[index].guarantee_steps
