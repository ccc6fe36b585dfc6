"""Hooks: strengths along the run, and the network that each conditioning is evaluated with."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from loraloom.errors import InputError
from loraloom.sampling.conditions import prepared
from loraloom.sampling.denoiser import Evaluation
from loraloom.sampling.hooks import Change, Hooks, HookStrengths, Keyframe, LoraHook
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond, Conditioning, Network, SampleContext
from tests.sampling.toy import NEGATIVE, Toy, noise, toy

X = noise(1)
P = toy().parametrisation


def strengths(keyframes: Sequence[Keyframe], sigmas: Sequence[float]) -> list[float]:
    state = HookStrengths(P)
    hook = LoraHook("a", 2.0, keyframes=tuple(keyframes))
    return [next((s for _, s in state.at((hook,), sigma)), 0.0) for sigma in sigmas]


LEVELS = [float(sigma) for sigma in sigmas_for(P, "normal", 10)[:-1]]


def test_a_hook_without_keyframes_keeps_its_strength() -> None:
    assert strengths((), LEVELS) == [2.0] * 10


def test_keyframes_take_over_where_they_start() -> None:
    starts = [P.percent_to_sigma(percent) for percent in (0.3, 0.7)]
    frames = [Keyframe(1.0, 0.0), Keyframe(0.5, 0.3), Keyframe(0.0, 0.7)]
    expected = [2.0 if s > starts[0] else 1.0 if s > starts[1] else 0.0 for s in LEVELS]
    assert strengths(frames, LEVELS) == expected
    assert len(set(expected)) == 3


def test_a_level_that_is_visited_again_counts_once() -> None:
    frames = [Keyframe(1.0, 0.0), Keyframe(0.5, 0.05), Keyframe(0.25, 0.06)]
    twice = [sigma for sigma in LEVELS for _ in range(2)]
    assert strengths(frames, twice)[::2] == strengths(frames, LEVELS)
    assert strengths(frames, LEVELS)[:4] == [2.0, 1.0, 0.5, 0.5]


def test_keyframes_without_guarantee_may_be_passed_over() -> None:
    frames = [Keyframe(1.0, 0.0), Keyframe(0.5, 0.05, 0), Keyframe(0.25, 0.06, 0)]
    assert strengths(frames, LEVELS)[:3] == [2.0, 0.5, 0.5]


def test_a_run_that_starts_late_begins_with_the_keyframe_of_its_place() -> None:
    frames = [Keyframe(1.0, 0.0), Keyframe(0.5, 0.2), Keyframe(0.25, 0.9)]
    assert strengths(frames, LEVELS[5:])[0] == 1.0


def adapt(changes: tuple[Change, ...]) -> Network:
    """A toy whose output grows with what its rows carry."""
    factors = [1 + sum(strength for _, strength in change) for change in changes]

    def grown(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [part * factor for part, factor in zip(out.chunk(len(factors)), factors, strict=True)]
        )

    return Toy(P, hook=grown)


def cond(value: float, hooks: Hooks = ()) -> Conditioning:
    return (Cond(torch.full((1, 77, 8), value), options={"hooks": hooks}),)


def evaluate(**sides: Conditioning) -> list[torch.Tensor]:
    entries = prepared(toy(), {n: (c, n) for n, c in sides.items()}, SampleContext(noise=X, latent=X))
    return Evaluation(toy(), entries, adapt)(X, torch.tensor(2.0), tuple(sides), ())


def test_each_conditioning_is_evaluated_with_its_own_loras() -> None:
    hook = LoraHook("a", 0.5)
    plain, hooked, both = evaluate(a=cond(0.5), b=cond(0.5, (hook,)), c=cond(0.5, (hook, LoraHook("b", 1.0))))
    step = X - plain
    torch.testing.assert_close(X - hooked, step * 1.5)
    torch.testing.assert_close(X - both, step * 2.5)


def test_conditionings_with_different_loras_are_one_batch() -> None:
    """Unless their shapes differ, which a network may not tell row by row."""
    network, seen = toy(), list[tuple[Change, ...]]()
    hooks = (LoraHook("a", 0.5),), (LoraHook("b", 1.0), LoraHook("a", 0.5))
    longer = (Cond(torch.ones(1, 154, 8), options={"hooks": hooks[1]}),)
    sides = {"a": cond(0.5), "b": cond(0.5, hooks[0]), "c": cond(0.5, hooks[1]), "d": longer}

    def adapted(changes: tuple[Change, ...]) -> Network:
        seen.append(changes)
        return network

    context = SampleContext(noise=X, latent=X)
    entries = prepared(network, {name: (side, name) for name, side in sides.items()}, context)
    Evaluation(network, entries, adapted)(X, torch.tensor(2.0), tuple(sides), ())
    assert network.calls == [(3, 77), (1, 154)]
    assert [[len(change) for change in changes] for changes in seen] == [[0, 1, 2], [2]]


def test_a_hook_of_strength_zero_is_no_hook() -> None:
    plain, hooked = evaluate(a=cond(0.5), b=cond(0.5, (LoraHook("a", 0.0),)))
    torch.testing.assert_close(plain, hooked)


def test_without_a_way_to_adapt_hooks_are_an_error() -> None:
    entries = prepared(
        toy(),
        {"a": (cond(0.5, (LoraHook("a", 1.0),)), "a"), "b": (NEGATIVE, "b")},
        SampleContext(noise=X, latent=X),
    )
    with pytest.raises(InputError, match="LoRAs of its own"):
        Evaluation(toy(), entries)(X, torch.tensor(2.0), ("a", "b"), ())
