"""Nodes that let the strength of hooks change as sampling goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, cast

import numpy as np

from loraloom.engine.node import Choice, NodeRun, Number, Options, Socket, node
from loraloom.errors import InputError
from loraloom.nodes.hooks import EXTRA, HooksSocket, HookStrength, Percent
from loraloom.sampling.hooks import Keyframe, Keyframes

SCHEDULING = "advanced/hooks/scheduling"

KeyframesSocket = Annotated[Keyframes, Socket("HOOK_KEYFRAMES")]


@node(
    "SetHookKeyframes",
    category=SCHEDULING,
    display_name="Set Hook Keyframes",
    experimental=True,
    python_module=EXTRA,
)
def set_keyframes(hooks: HooksSocket, hook_kf: KeyframesSocket | None = None) -> HooksSocket:
    """Let the strength of hooks change as sampling goes on."""
    return hooks if hook_kf is None else tuple(replace(hook, keyframes=hook_kf) for hook in hooks)


@node(
    "CreateHookKeyframe",
    category=SCHEDULING,
    display_name="Create Hook Keyframe",
    outputs=("HOOK_KF",),
    experimental=True,
    python_module=EXTRA,
)
def create_keyframe(
    strength_mult: HookStrength = 1.0,
    start_percent: Percent = 0.0,
    prev_hook_kf: KeyframesSocket | None = None,
) -> KeyframesSocket:
    """A factor of the strength from a point of the sampling range on."""
    return _ordered((*(prev_hook_kf or ()), Keyframe(strength_mult, start_percent)))


EASINGS = {
    "linear": lambda share: share,
    "ease_in": lambda share: share**2,
    "ease_out": lambda share: 1 - (1 - share) ** 2,
    "ease_in_out": lambda share: (1 - math.cos(share * math.pi)) / 2,
}


@node(
    "CreateHookKeyframesInterpolated",
    category=SCHEDULING,
    display_name="Create Hook Keyframes Interp.",
    outputs=("HOOK_KF",),
    experimental=True,
    python_module=EXTRA,
)
def interpolate_keyframes(
    *,
    strength_start: Annotated[float, Number(min=0.0, max=10.0, step=0.001)] = 1.0,
    strength_end: Annotated[float, Number(min=0.0, max=10.0, step=0.001)] = 1.0,
    interpolation: Annotated[str, Choice(tuple(EASINGS))],
    start_percent: Percent = 0.0,
    end_percent: Percent = 1.0,
    keyframes_count: Annotated[int, Number(min=2, max=100, step=1)] = 5,
    print_keyframes: bool = False,
    prev_hook_kf: KeyframesSocket | None = None,
    run: NodeRun,
) -> KeyframesSocket:
    """Factors of the strength that go from one value to another between two points of the sampling range."""
    shares = [i / (keyframes_count - 1) for i in range(keyframes_count)]
    frames = tuple(
        Keyframe(
            strength_start + EASINGS[interpolation](share) * (strength_end - strength_start),
            start_percent + share * (end_percent - start_percent),
            guarantee_steps=1 if share == 0 else 0,
        )
        for share in shares
    )
    return _beside(prev_hook_kf, frames, run if print_keyframes else None)


@node(
    "CreateHookKeyframesFromFloats",
    category=SCHEDULING,
    display_name="Create Hook Keyframes From Floats",
    outputs=("HOOK_KF",),
    experimental=True,
    python_module=EXTRA,
)
def keyframes_of_floats(
    *,
    floats_strength: Annotated[
        object, Socket("FLOATS"), Options({"default": -1, "min": -1, "step": 0.001, "forceInput": True})
    ],
    start_percent: Percent = 0.0,
    end_percent: Percent = 1.0,
    print_keyframes: bool = False,
    prev_hook_kf: KeyframesSocket | None = None,
    run: NodeRun,
) -> KeyframesSocket:
    """Given factors of the strength, spread evenly between two points of the sampling range."""
    strengths = _numbers(floats_strength)
    percents = np.linspace(start_percent, end_percent, len(strengths)).tolist()
    frames = tuple(
        Keyframe(strength, percent, guarantee_steps=1 if i == 0 else 0)
        for i, (strength, percent) in enumerate(zip(strengths, percents, strict=True))
    )
    return _beside(prev_hook_kf, frames, run if print_keyframes else None)


def _numbers(value: object) -> list[float]:
    """A number, or a list of them, as a list. Raises InputError for anything else."""
    listed = list(cast("Iterable[object]", value)) if isinstance(value, Iterable) else [value]
    numbers = [float(entry) for entry in listed if isinstance(entry, int | float)]
    if len(numbers) != len(listed) or not numbers:
        raise InputError(f"floats_strength should be a number or a list of numbers, not {value!r:.80}")
    return numbers


def _beside(earlier: Keyframes | None, frames: Keyframes, run: NodeRun | None) -> Keyframes:
    """Keyframes with those that were there, told to the user where a run is given."""
    if run is not None:
        listed = ", ".join(f"{frame.strength:.3g} from {frame.start_percent:.1%}" for frame in frames)
        run.note("text", f"keyframes: {listed}")
    return _ordered((*(earlier or ()), *frames))


def _ordered(keyframes: Keyframes) -> Keyframes:
    return tuple(sorted(keyframes, key=lambda frame: frame.start_percent))
