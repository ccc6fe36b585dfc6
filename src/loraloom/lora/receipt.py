"""The LoRA receipt: what one application of one LoRA file matched, left out, and changed.

Field names are stable: they stand in pictures' metadata, in the history and in `--json` output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class ComponentReceipt:
    """One part of the model ("model", "clip"). matched, total: modules of the file that are for this part.

    weights: native weights (and biases) that the LoRA changes here.
    """

    component: str
    matched: int
    total: int
    weights: int


@dataclass(frozen=True, slots=True)
class Ignored:
    """Modules left out by design, and why."""

    reason: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A module that has its place but does not fit it."""

    module: str
    weight: str
    reason: str


@dataclass(frozen=True, slots=True)
class BlockEffect:
    """‖ΔW‖ / ‖W‖ (Frobenius, at the strength used) over the weights of one block of the network."""

    block: str
    weights: int
    relative: float


@dataclass(frozen=True, slots=True)
class Effect:
    """How large the change is: ‖ΔW‖ and ‖W‖ over all changed weights of a component, and by block."""

    component: str
    delta_norm: float
    base_norm: float
    blocks: tuple[BlockEffect, ...]

    @property
    def relative(self) -> float:
        return self.delta_norm / self.base_norm if self.base_norm else 0.0

    def scaled(self, factor: float) -> Effect:
        blocks = tuple(replace(block, relative=block.relative * factor) for block in self.blocks)
        return replace(self, delta_norm=self.delta_norm * factor, blocks=blocks)


@dataclass(frozen=True, slots=True)
class Survival:
    """How a LoRA is put on a quantised base, and what storing the sum in the base's format again would lose.

    storage: the format of the weights that it changes (the most frequent one). beside: quantised weights
    that stay as they are, with the change running beside them, exact. merged: quantised weights that are
    widened and carry the change in the type to compute in, because it has no factors.
    lost: ‖Q(W+Δ) − W − Δ‖ / ‖Δ‖ by a sample of `weights` weights, which neither way does: 0 if all would
    survive, near 1 and beyond nothing recognisable; None where the format's rounding is not known.
    """

    component: str
    storage: str
    lost: float | None
    weights: int
    beside: int = 0
    merged: int = 0

    def __str__(self) -> str:
        ways = [f"{self.beside} beside {self.storage} weights"] if self.beside else []
        if self.merged:
            ways.append(f"{self.merged} {self.storage} weights widened")
        lost = "" if self.lost is None else f" (requantising would lose {self.lost:.0%} of it)"
        return " and ".join(ways) + lost


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a LoRA file.

    file: its path as given. digest: BLAKE3 of the content. hashes: further names of the same content
    (sha256, autov1, autov2, autov3) where they are known. dialect: how it spells names. trainer, base:
    what wrote it and the family it was made for, as far as the file shows. algorithms: algebra → modules.
    alpha: how the scale was found. unplaced: modules no part of the model has. unknown: tensors that belong
    to no known algebra. unsupported: how many of them are of adapters that are known by name but not
    applied, by that name. compat: the rules followed ("trainer", "comfyui"). left_out: why the file was not
    opened at all; then nothing else is known of it. digest, hashes, effects and survival are empty until
    they are measured (`LoadedLora.measured`).
    """

    file: str
    digest: str
    dialect: str
    trainer: str
    base: str
    algorithms: Mapping[str, int]
    alpha: str
    components: tuple[ComponentReceipt, ...]
    ignored: tuple[Ignored, ...] = ()
    unplaced: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unsupported: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())
    rejected: tuple[Rejected, ...] = ()
    triggers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    compat: str = "trainer"
    strength_model: float | None = None
    strength_clip: float | None = None
    hashes: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    effects: tuple[Effect, ...] = ()
    survival: tuple[Survival, ...] = ()
    left_out: str = ""

    @staticmethod
    def unopened(file: str, reason: str) -> Receipt:
        """The receipt of a LoRA that is not used, and whose file is not even read."""
        return Receipt(file, "", "", "", "", {}, "", (), left_out=reason)

    @property
    def matched(self) -> int:
        return sum(part.matched for part in self.components)

    @property
    def total(self) -> int:
        """Modules that should have found a place: all but those ignored by design."""
        return self.matched + len(self.unplaced) + len(self.rejected)

    @property
    def complete(self) -> bool:
        return not (self.unplaced or self.rejected or self.unknown)

    def at(self, model: float | None, clip: float | None) -> Receipt:
        """The receipt of one use, at these strengths; effects known for strength 1 are scaled to them."""
        strengths = {"model": model, "clip": clip}
        effects = tuple(effect.scaled(abs(strengths.get(effect.component) or 0.0)) for effect in self.effects)
        return replace(self, strength_model=model, strength_clip=clip, effects=effects)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps; derived counts included."""
        data = asdict(self)
        data["matched"], data["total"], data["complete"] = self.matched, self.total, self.complete
        for effect, plain in zip(self.effects, data["effects"], strict=True):
            plain["relative"] = effect.relative
        return data

    def summary(self) -> str:
        """One line for the terminal: "name.safetensors · 264/264 modules · kohya · sd15 · …"."""
        name = self.file.replace("\\", "/").rsplit("/", 1)[-1]
        if self.left_out:
            return f"{name} · left out: {self.left_out}"
        parts = [name, f"{self.matched}/{self.total} modules placed", self.dialect]
        if self.strength_model is not None:
            parts.append(f"model {self.strength_model:g}")
        if self.strength_clip is not None:
            parts.append(f"clip {self.strength_clip:g}")
        parts += [f"‖ΔW‖/‖W‖ {effect.component} {effect.relative:.3g}" for effect in self.effects]
        parts += [str(way) for way in self.survival]
        left_out = sum(len(entry.modules) for entry in self.ignored)
        if left_out:
            parts.append(f"{left_out} left out by design")
        return " · ".join(parts)


def shorten(names: tuple[str, ...] | list[str], shown: int = SHOWN_NAMES) -> str:
    """A list of names for a message: the first few, and how many more."""
    text = ", ".join(names[:shown])
    return text + (f" and {len(names) - shown} more" if len(names) > shown else "")
