"""The driver equals the reference in every figure, and does what its contract says at the edges."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError, LoraloomError, OutOfMemory
from loraloom.sampling.guidance import CFG, SamplingOptions
from loraloom.sampling.noise import initial_noise
from loraloom.sampling.run import completed, mask_like, sample
from loraloom.sampling.samplers.registry import method, sampler_names
from loraloom.sampling.schedules import between, sigmas_for
from loraloom.sampling.types import Cond, Parametrisation, Step
from tests.no_memory import Fail, both_kinds
from tests.sampling.toy import NEGATIVE, PARITY, POSITIVE, Toy, noise, toy

FIGURES = np.load(PARITY / "samplers.npz")
PLAIN = [key for key in FIGURES.files if key.count("|") == 2 and key != "eps|ipndm_v|linear_quadratic"]
SPECIAL = [key for key in FIGURES.files if key.count("|") == 1]


def run(
    network: Toy,
    sampler: str,
    sigmas: Tensor,
    *,
    seed: int,
    cfg: float = 5.0,
    latent: Tensor | None = None,
    add_noise: bool = True,
    mask: Tensor | None = None,
    options: SamplingOptions | None = None,
) -> Tensor:
    latent = torch.zeros(1, network.latent_channels, 8, 8) if latent is None else latent
    steps = sample(
        network,
        CFG(POSITIVE, NEGATIVE, cfg),
        latent=latent,
        noise=initial_noise(latent, seed) if add_noise else torch.zeros_like(latent),
        method=method(sampler),
        sigmas=sigmas,
        seed=seed,
        noise_mask=mask,
        options=options,
    )
    return completed(steps).latent


def bar_of(key: str) -> float:
    """How far a result may be from its figure, in standard deviations."""
    name = key.split("|")[1]
    loose = "sde" in name or "seeds" in name or name.startswith(("sa_solver", "dpm_adaptive"))
    return 1e-3 if loose else 1e-4


def distance(result: Tensor, key: str) -> float:
    wanted = torch.from_numpy(FIGURES[key])
    return float((result - wanted).abs().max() / wanted.std())


def assert_equals(result: Tensor, key: str) -> None:
    error = distance(result, key)
    assert error < bar_of(key), f"{key}: {error:.2e} of the standard deviation"


class Rounded:
    """A parametrisation whose network is told levels that are off by one rounding."""

    def __init__(self, inner: Parametrisation, factor: float) -> None:
        self._inner, self._factor = inner, factor

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def timestep(self, sigma: Tensor) -> Tensor:
        return self._inner.timestep(sigma * self._factor)


@pytest.mark.parametrize("key", PLAIN)
def test_every_sampler_equals_the_reference(key: str) -> None:
    """A few trajectories of the toy amplify rounding, or stand where two entries of the noise table are as
    near: there processors differ. Such a one may be as far off as one rounding of the levels moves it."""
    kind, sampler, scheduler = key.split("|")

    def result(rounding: float = 1.0, told: float = 1.0) -> Tensor:
        network = toy(kind)
        sigmas = sigmas_for(network.parametrisation, scheduler, 6, method=method(sampler)) * rounding
        if told != 1.0:
            network.parametrisation = cast(Parametrisation, Rounded(network.parametrisation, told))
        return run(network, sampler, sigmas, seed=42, cfg=4.0)

    found = result()
    error = distance(found, key)
    if error < bar_of(key):
        return
    nudged = [result(1 + side * 2**-23, 1 + other * 2**-23) for side in (-1, 0, 1) for other in (-1, 1)]
    moved = max(float((one - found).abs().max() / found.std()) for one in nudged)
    assert error < min(2 * moved, 1e-2), (
        f"{key}: {error:.2e} of the standard deviation, {moved:.2e} by rounding"
    )


@pytest.mark.parametrize("key", SPECIAL)
def test_partial_masked_and_batched_runs_equal_the_reference(key: str) -> None:
    case, sampler = key.split("|")
    network, chosen = toy("eps"), method(sampler)

    def levels(scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
        return sigmas_for(network.parametrisation, scheduler, steps, denoise, method=chosen)

    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    mask[3, 3] = 0.5
    cases: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "img2img": (levels("karras", 8, 0.55), {"seed": 43, "latent": noise(7, 2, 4, 8, 8)}),
        "batch2": (levels("normal", 5), {"seed": 44, "latent": torch.zeros(2, 4, 8, 8)}),
        "advanced_first": (between(levels("normal", 10), 0, 4, full_denoise=False), {"seed": 45}),
        "advanced_second": (
            between(levels("normal", 10), 4, 10000),
            {"seed": 45, "latent": noise(7), "add_noise": False},
        ),
        "mask": (levels("normal", 6), {"seed": 46, "latent": noise(7), "mask": mask}),
        "cfg1": (levels("normal", 6), {"seed": 47, "cfg": 1.0}),
    }
    sigmas, options = cases[case]
    assert_equals(run(network, sampler, sigmas, **options), key)


@pytest.mark.parametrize("sampler", sampler_names())
@pytest.mark.parametrize("kind", ["eps", "flux"])
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_give_finite_latents(kind: str, sampler: str, steps: int) -> None:
    network = toy(kind)
    sigmas = sigmas_for(network.parametrisation, "simple", steps)
    assert torch.isfinite(run(network, sampler, sigmas, seed=1)).all()


@pytest.mark.parametrize("sampler", sampler_names())
def test_a_run_leaves_the_global_random_state_alone(sampler: str) -> None:
    network = toy()
    before = torch.get_rng_state()
    run(network, sampler, sigmas_for(network.parametrisation, "karras", 4), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", sampler_names())
def test_a_run_repeats_itself_and_follows_its_seed(sampler: str) -> None:
    network = toy()
    sigmas = sigmas_for(network.parametrisation, "karras", 4)
    first = run(network, sampler, sigmas, seed=3)
    assert torch.equal(first, run(network, sampler, sigmas, seed=3))
    assert not torch.equal(first, run(network, sampler, sigmas, seed=4))


@pytest.mark.parametrize("sampler", sampler_names())
def test_a_mask_of_zeros_keeps_the_latent(sampler: str) -> None:
    network, latent = toy(), noise(7)
    sigmas = sigmas_for(network.parametrisation, "karras", 5)
    kept = run(network, sampler, sigmas, seed=1, latent=latent, mask=torch.zeros(1, 1, 64, 64))
    last = {"uni_pc": 0.001, "uni_pc_bh2": 0.001, "dpm_fast": 0.0292, "dpm_adaptive": 0.0292}.get(
        sampler, 0.0
    )
    difference = network.process_latent_in(kept - latent).abs().max()
    assert difference < 5 * last + 1e-4, "what the sampler's last level leaves of noise"


def test_steps_report_where_they_are() -> None:
    network = toy()
    sigmas = sigmas_for(network.parametrisation, "karras", 4)
    seen: list[Step] = []
    steps = sample(
        network,
        CFG(POSITIVE, NEGATIVE, 5.0),
        latent=torch.zeros(1, 4, 8, 8),
        noise=noise(1),
        method=method("euler"),
        sigmas=sigmas,
        seed=1,
    )
    sampled = completed(steps, seen.append)
    assert [step.index for step in seen] == [0, 1, 2, 3]
    assert torch.equal(torch.stack([step.sigma for step in seen]), sigmas[:-1])
    torch.testing.assert_close(network.process_latent_out(seen[-1].x), sampled.latent)
    torch.testing.assert_close(network.process_latent_out(seen[-1].denoised), sampled.denoised)
    assert not sampled.latent.requires_grad


def test_a_caller_may_stop_a_run() -> None:
    network = toy()
    sigmas = sigmas_for(network.parametrisation, "karras", 20)

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    steps = sample(
        network,
        CFG(POSITIVE, NEGATIVE, 5.0),
        latent=torch.zeros(1, 4, 8, 8),
        noise=noise(1),
        method=method("euler"),
        sigmas=sigmas,
        seed=1,
    )
    with pytest.raises(KeyboardInterrupt):
        completed(steps, stop)
    assert len(network.calls) == 1


def test_gradients_stay_enabled_between_steps() -> None:
    network = toy()
    steps = sample(
        network,
        CFG(POSITIVE, NEGATIVE, 5.0),
        latent=torch.zeros(1, 4, 8, 8),
        noise=noise(1),
        method=method("euler"),
        sigmas=sigmas_for(network.parametrisation, "karras", 4),
        seed=1,
    )
    next(steps)
    assert torch.is_grad_enabled()


def test_nothing_to_do_gives_the_latent_back() -> None:
    latent = noise(7)
    assert torch.equal(run(toy(), "euler", torch.zeros(0), seed=1, latent=latent), latent)


def test_values_that_are_not_finite_name_the_step() -> None:
    network = toy()
    network.hook = lambda x, out: out if len(network.calls) < 3 else out * float("nan")
    with pytest.raises(LoraloomError, match=r"Step 3 of 5 .*float32"):
        run(network, "euler", sigmas_for(network.parametrisation, "karras", 5), seed=1)


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 4, 8, 8\).*\(1, 4, 8, 8\)"):
        next(
            sample(
                toy(),
                CFG(POSITIVE, NEGATIVE, 5.0),
                latent=torch.zeros(1, 4, 8, 8),
                noise=noise(1, 2, 4, 8, 8),
                method=method("euler"),
                sigmas=torch.tensor([1.0, 0.0]),
                seed=1,
            )
        )


@both_kinds
def test_the_batch_shrinks_when_memory_is_short(fail: Fail) -> None:
    network = toy()
    sigmas = sigmas_for(network.parametrisation, "karras", 3)
    plenty = run(network, "euler", sigmas, seed=1)

    def short(x: Tensor, out: Tensor) -> Tensor:
        if x.shape[0] > 1:
            fail()
        return out

    network.hook = short
    network.calls.clear()
    torch.testing.assert_close(run(network, "euler", sigmas, seed=1), plenty)
    assert [batch for batch, _ in network.calls] == [2] + [1] * 6


@both_kinds
def test_latents_of_one_batch_are_evaluated_apart_when_memory_is_short(fail: Fail) -> None:
    network = toy()
    latent = torch.zeros(3, 4, 8, 8)

    def sampled() -> Tensor:
        steps = sample(
            network, CFG(POSITIVE, NEGATIVE, 5.0), latent=latent, noise=noise(1, 3, 4, 8, 8),
            method=method("euler"), sigmas=sigmas_for(network.parametrisation, "karras", 2), seed=1,
        )  # fmt: skip
        return completed(steps).latent

    plenty = sampled()

    def short(x: Tensor, out: Tensor) -> Tensor:
        if x.shape[0] > 2:
            fail()
        return out

    network.hook = short
    network.calls.clear()
    torch.testing.assert_close(sampled(), plenty)
    assert [batch for batch, _ in network.calls] == [6, 3] + [1] * 12


def test_other_errors_of_a_network_are_not_taken_for_too_little_memory() -> None:
    network = toy()

    def broken(x: Tensor, out: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    network.hook = broken
    with pytest.raises(RuntimeError, match="shapes"):
        run(network, "euler", sigmas_for(network.parametrisation, "karras", 3), seed=1)
    assert len(network.calls) == 1


@both_kinds
def test_too_little_memory_for_one_is_an_error_that_says_so(fail: Fail) -> None:
    network = toy()

    def none(x: Tensor, out: Tensor) -> Tensor:
        fail()
        return out

    network.hook = none
    with pytest.raises(OutOfMemory, match="smaller picture"):
        run(network, "euler", sigmas_for(network.parametrisation, "karras", 3), seed=1)


def test_a_mask_rule_sees_every_level() -> None:
    network, seen = toy(), list[float]()

    def rule(mask: Tensor, sigma: Tensor, sigmas: Tensor, parametrisation: Parametrisation) -> Tensor:
        seen.append(float(sigma))
        return torch.ones_like(mask)

    sigmas = sigmas_for(network.parametrisation, "karras", 3)
    free = run(network, "euler", sigmas, seed=1, latent=noise(7))
    ruled = run(
        network,
        "euler",
        sigmas,
        seed=1,
        latent=noise(7),
        mask=torch.zeros(8, 8),
        options=SamplingOptions(mask=rule),
    )
    assert seen == [float(sigma) for sigma in sigmas[:-1]]
    torch.testing.assert_close(ruled, free)


def test_masks_of_any_size_fit_the_latent() -> None:
    latent = torch.zeros(3, 4, 8, 8)
    masks = torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
    fitted = mask_like(masks, latent)
    assert fitted.shape == (3, 1, 8, 8)
    assert [float(mask.mean()) for mask in fitted] == [0, 1, 0]
    assert mask_like(masks[0], latent).shape == (3, 1, 8, 8)


def test_the_network_learns_of_the_run() -> None:
    network = toy("sd3")
    latent, mask = noise(7, 1, 16, 8, 8), torch.ones(8, 8)
    steps = sample(
        network,
        CFG((Cond(torch.zeros(1, 5, 8)),), (Cond(torch.zeros(1, 5, 8)),), 3.0),
        latent=latent,
        noise=noise(1, 1, 16, 8, 8),
        method=method("euler"),
        sigmas=sigmas_for(network.parametrisation, "simple", 2),
        seed=11,
        noise_mask=mask,
    )
    completed(steps)
    context = network.contexts[0]
    assert [context.role for context in network.contexts] == ["positive", "negative"]
    assert context.seed == 11
    torch.testing.assert_close(context.latent, network.process_latent_in(latent))
    assert context.mask is not None
    assert context.mask.shape == (1, 1, 8, 8)
