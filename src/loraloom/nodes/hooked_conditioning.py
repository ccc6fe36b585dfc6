"""Nodes that say where, when and with which LoRAs a conditioning counts, one by one and in pairs."""

from __future__ import annotations

from typing import Annotated

from loraloom.engine.node import Choice, Socket, node
from loraloom.nodes.conditioning import AreaStrength, with_options
from loraloom.nodes.hooks import EXTRA, HooksSocket, Percent, with_hooks
from loraloom.nodes.sockets import Conditioning, Mask
from loraloom.resampling import as_batch
from loraloom.sampling.hooks import Hooks
from loraloom.sampling.types import Conditioning as ConditioningValue

SINGLE = "advanced/hooks/cond single"
PAIR = "advanced/hooks/cond pair"

Range = tuple[float, float]
RangeSocket = Annotated[Range, Socket("TIMESTEPS_RANGE")]
CondArea = Annotated[str, Choice(("default", "mask bounds"))]


@node(
    "ConditioningTimestepsRange",
    category="advanced/hooks",
    display_name="Timesteps Range",
    outputs=("TIMESTEPS_RANGE", "BEFORE_RANGE", "AFTER_RANGE"),
    experimental=True,
    python_module=EXTRA,
)
def steps_range(
    start_percent: Percent = 0.0, end_percent: Percent = 1.0
) -> tuple[RangeSocket, RangeSocket, RangeSocket]:
    """A part of the sampling range, and what lies before and after it."""
    return (start_percent, end_percent), (0.0, start_percent), (end_percent, 1.0)


@node(
    "ConditioningSetProperties",
    category=SINGLE,
    display_name="Cond Set Props",
    experimental=True,
    python_module=EXTRA,
)
def set_properties(
    *,
    cond_NEW: Conditioning,
    strength: AreaStrength = 1.0,
    set_cond_area: CondArea,
    mask: Mask | None = None,
    hooks: HooksSocket | None = None,
    timesteps: RangeSocket | None = None,
) -> Conditioning:
    """Say how much, where and when a conditioning counts, and with which LoRAs."""
    return _with_properties(cond_NEW, strength, set_cond_area, mask, hooks, timesteps)


@node(
    "ConditioningSetPropertiesAndCombine",
    category=SINGLE,
    display_name="Cond Set Props Combine",
    experimental=True,
    python_module=EXTRA,
)
def set_properties_and_combine(
    *,
    cond: Conditioning,
    cond_NEW: Conditioning,
    strength: AreaStrength = 1.0,
    set_cond_area: CondArea,
    mask: Mask | None = None,
    hooks: HooksSocket | None = None,
    timesteps: RangeSocket | None = None,
) -> Conditioning:
    """Set a conditioning's properties and let it count beside another one."""
    return cond + _with_properties(cond_NEW, strength, set_cond_area, mask, hooks, timesteps)


@node(
    "PairConditioningSetProperties",
    category=PAIR,
    display_name="Cond Pair Set Props",
    outputs=("positive", "negative"),
    experimental=True,
    python_module=EXTRA,
)
def set_pair_properties(
    *,
    positive_NEW: Conditioning,
    negative_NEW: Conditioning,
    strength: AreaStrength = 1.0,
    set_cond_area: CondArea,
    mask: Mask | None = None,
    hooks: HooksSocket | None = None,
    timesteps: RangeSocket | None = None,
) -> tuple[Conditioning, Conditioning]:
    """Set the properties of a positive and a negative conditioning alike."""
    said = (strength, set_cond_area, mask, hooks, timesteps)
    return _with_properties(positive_NEW, *said), _with_properties(negative_NEW, *said)


@node(
    "PairConditioningSetPropertiesAndCombine",
    category=PAIR,
    display_name="Cond Pair Set Props Combine",
    outputs=("positive", "negative"),
    experimental=True,
    python_module=EXTRA,
)
def set_pair_properties_and_combine(
    *,
    positive: Conditioning,
    negative: Conditioning,
    positive_NEW: Conditioning,
    negative_NEW: Conditioning,
    strength: AreaStrength = 1.0,
    set_cond_area: CondArea,
    mask: Mask | None = None,
    hooks: HooksSocket | None = None,
    timesteps: RangeSocket | None = None,
) -> tuple[Conditioning, Conditioning]:
    """Set the properties of a pair of conditionings and let them count beside another pair."""
    said = (strength, set_cond_area, mask, hooks, timesteps)
    return positive + _with_properties(positive_NEW, *said), negative + _with_properties(negative_NEW, *said)


@node(
    "PairConditioningCombine",
    category=PAIR,
    display_name="Cond Pair Combine",
    outputs=("positive", "negative"),
    experimental=True,
    python_module=EXTRA,
)
def combine_pairs(
    *,
    positive_A: Conditioning,
    negative_A: Conditioning,
    positive_B: Conditioning,
    negative_B: Conditioning,
) -> tuple[Conditioning, Conditioning]:
    """Let both pairs of conditionings predict, and average what they predict."""
    return positive_A + positive_B, negative_A + negative_B


@node(
    "ConditioningSetDefaultCombine",
    category=SINGLE,
    display_name="Cond Set Default Combine",
    experimental=True,
    python_module=EXTRA,
)
def set_default(
    *, cond: Conditioning, cond_DEFAULT: Conditioning, hooks: HooksSocket | None = None
) -> Conditioning:
    """Let a conditioning count where others, with their masks and areas, leave room."""
    default = cond_DEFAULT if hooks is None else with_hooks(cond_DEFAULT, hooks)
    return cond + with_options(default, {"default": True})


@node(
    "PairConditioningSetDefaultCombine",
    category=PAIR,
    display_name="Cond Pair Set Default Combine",
    outputs=("positive", "negative"),
    experimental=True,
    python_module=EXTRA,
)
def set_default_pair(
    *,
    positive: Conditioning,
    negative: Conditioning,
    positive_DEFAULT: Conditioning,
    negative_DEFAULT: Conditioning,
    hooks: HooksSocket | None = None,
) -> tuple[Conditioning, Conditioning]:
    """Let a pair of conditionings count where others, with their masks and areas, leave room."""
    return (
        set_default(cond=positive, cond_DEFAULT=positive_DEFAULT, hooks=hooks),
        set_default(cond=negative, cond_DEFAULT=negative_DEFAULT, hooks=hooks),
    )


def _with_properties(
    conditioning: ConditioningValue,
    strength: float,
    set_cond_area: str,
    mask: Mask | None,
    hooks: Hooks | None,
    timesteps: Range | None,
) -> ConditioningValue:
    said: dict[str, object] = {}
    if mask is not None:  # the strength is the mask's: without one, all entries count alike
        said |= {"mask": as_batch(mask), "mask_strength": strength}
        said["set_area_to_bounds"] = set_cond_area != "default"
    if timesteps is not None:
        said |= {"start_percent": timesteps[0], "end_percent": timesteps[1]}
    changed = with_options(conditioning, said)
    return changed if hooks is None else with_hooks(changed, hooks)
