"""Nodes that let the strength of hooks change as sampling goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

from loraloom.engine.node import Choice, NodeRun, Number, Socket, node
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
    if print_keyframes:
        listed = ", ".join(f"{frame.strength:.3g} from {frame.start_percent:.1%}" for frame in frames)
        run.note("text", f"keyframes: {listed}")
    return _ordered((*(prev_hook_kf or ()), *frames))


def _ordered(keyframes: Keyframes) -> Keyframes:
    return tuple(sorted(keyframes, key=lambda frame: frame.start_percent))
