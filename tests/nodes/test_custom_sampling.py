"""Sampling nodes on a narrow checkpoint: the parts put together give what KSampler gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import DiffusionModel
from loraloom.nodes import custom_sampling as nodes
from loraloom.nodes import model_sampling, samplers, sigmas
from loraloom.nodes.sampling import ksampler, ksampler_advanced
from loraloom.nodes.sockets import LatentValue
from loraloom.sampling.noise import continued_noise
from loraloom.sampling.parametrisation import Discrete
from loraloom.sampling.samplers.registry import method, sampler_names
from loraloom.sampling.samplers.sa_solver import TauBetween
from loraloom.sampling.samplers.stochastic import PowerNoiseScale
from loraloom.sampling.types import Cond, Conditioning
from tests import tiny_models
from tests.nodes.runs import PlainRun


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> DiffusionModel:
    found, _, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    assert found is not None
    return found


def prompt(seed: int) -> Conditioning:
    return (Cond(torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(seed))),)


POSITIVE, NEGATIVE, OTHER = prompt(1), prompt(2), prompt(3)


def empty() -> LatentValue:
    return {"samples": torch.zeros(1, 4, 8, 8)}


def samples(value: LatentValue) -> Tensor:
    found = value.get("samples")
    assert found is not None
    return found


def guided(model: DiffusionModel, guider: nodes.GuiderValue, run: PlainRun, seed: int = 5) -> Tensor:
    found, _ = nodes.sample_custom_advanced(
        noise=nodes.random_noise(seed),
        guider=guider,
        sampler=method("euler"),
        sigmas=sigmas.basic(model=model, scheduler="karras", steps=3),
        latent_image=empty(),
        run=run,
    )
    return samples(found)


def test_parts_give_what_ksampler_gives(model: DiffusionModel, run: PlainRun) -> None:
    whole = ksampler(
        model=model,
        seed=5,
        steps=3,
        cfg=4.0,
        sampler_name="dpmpp_2m_sde",
        scheduler="karras",
        positive=POSITIVE,
        negative=NEGATIVE,
        latent_image=empty(),
        run=run,
    )
    assert run.steps == [(1, 3), (2, 3), (3, 3)]
    levels = sigmas.basic(model=model, scheduler="karras", steps=3)
    custom, denoised = nodes.sample_custom(
        model=model,
        noise_seed=5,
        cfg=4.0,
        positive=POSITIVE,
        negative=NEGATIVE,
        sampler=samplers.choose_sampler("dpmpp_2m_sde"),
        sigmas=levels,
        latent_image=empty(),
        run=run,
    )
    advanced, _ = nodes.sample_custom_advanced(
        noise=nodes.random_noise(5),
        guider=nodes.cfg_guider(model, POSITIVE, NEGATIVE, 4.0),
        sampler=samplers.choose_sampler("dpmpp_2m_sde"),
        sigmas=levels,
        latent_image=empty(),
        run=run,
    )
    for found in (custom, advanced, denoised):
        torch.testing.assert_close(samples(found), samples(whole))


def test_two_halves_make_a_whole(model: DiffusionModel, run: PlainRun) -> None:
    common: dict[str, Any] = {
        "model": model,
        "steps": 4,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "run": run,
    }
    first = ksampler_advanced(
        add_noise="enable",
        noise_seed=5,
        latent_image=empty(),
        start_at_step=0,
        end_at_step=2,
        return_with_leftover_noise="enable",
        **common,
    )
    second = ksampler_advanced(
        add_noise="disable",
        noise_seed=5,
        latent_image=first,
        start_at_step=2,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        **common,
    )
    whole = ksampler(seed=5, latent_image=empty(), **common)
    torch.testing.assert_close(samples(second), samples(whole), rtol=1e-3, atol=1e-3)


def test_split_schedules_continue(model: DiffusionModel, run: PlainRun) -> None:
    levels = sigmas.basic(model=model, scheduler="normal", steps=4)
    high, low = sigmas.split(levels, 2)
    guider = nodes.cfg_guider(model, POSITIVE, NEGATIVE, 4.0)

    def sampled(noise: nodes.NoiseValue, part: Tensor, latent: LatentValue) -> LatentValue:
        found, _ = nodes.sample_custom_advanced(
            noise=noise, guider=guider, sampler=method("euler"), sigmas=part, latent_image=latent, run=run
        )
        return found

    half = sampled(nodes.random_noise(5), high, empty())
    done = sampled(nodes.no_noise(), low, half)
    whole = sampled(nodes.random_noise(5), levels, empty())
    torch.testing.assert_close(samples(done), samples(whole), rtol=1e-3, atol=1e-3)


def test_guiders_differ_as_their_formulas_do(model: DiffusionModel, run: PlainRun) -> None:
    plain = guided(model, nodes.basic_guider(model, POSITIVE), run)
    torch.testing.assert_close(guided(model, nodes.cfg_guider(model, POSITIVE, NEGATIVE, 1.0), run), plain)
    dual = nodes.dual_cfg_guider(
        model=model,
        cond1=POSITIVE,
        cond2=OTHER,
        negative=NEGATIVE,
        cfg_conds=1.0,
        cfg_cond2_negative=1.0,
        style="regular",
    )
    torch.testing.assert_close(guided(model, dual, run), plain)
    perp = nodes.perp_neg_guider(
        model=model, positive=POSITIVE, negative=POSITIVE, empty_conditioning=OTHER, cfg=3.0
    )
    reference = guided(model, nodes.cfg_guider(model, POSITIVE, OTHER, 3.0), run)
    torch.testing.assert_close(guided(model, perp, run), reference, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(reference, plain, atol=1e-2)


def test_what_is_on_the_model_counts(model: DiffusionModel, run: PlainRun) -> None:
    plain = guided(model, nodes.cfg_guider(model, POSITIVE, NEGATIVE, 4.0), run)
    changed = model_sampling.rescale_cfg(model, 1.0)
    assert not torch.equal(guided(changed, nodes.cfg_guider(changed, POSITIVE, NEGATIVE, 4.0), run), plain)
    v = model_sampling.discrete(model, sampling="v_prediction")
    assert not torch.equal(guided(v, nodes.cfg_guider(v, POSITIVE, NEGATIVE, 4.0), run), plain)


def test_a_batch_place_keeps_its_noise(model: DiffusionModel, run: PlainRun) -> None:
    guider = nodes.basic_guider(model, POSITIVE)

    def sampled(latent: LatentValue) -> Tensor:
        found, _ = nodes.sample_custom_advanced(
            noise=nodes.random_noise(5),
            guider=guider,
            sampler=method("euler"),
            sigmas=sigmas.basic(model=model, scheduler="karras", steps=2),
            latent_image=latent,
            run=run,
        )
        return samples(found)

    both = sampled({"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 1]})
    second = sampled({"samples": torch.zeros(1, 4, 8, 8), "batch_index": [1]})
    torch.testing.assert_close(second, both[1:], rtol=1e-3, atol=1e-3)


def test_a_mask_keeps_the_rest_and_stays_on_the_latent(model: DiffusionModel, run: PlainRun) -> None:
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1
    latent: LatentValue = {"samples": torch.ones(1, 4, 8, 8), "noise_mask": mask}
    found, _ = nodes.sample_custom_advanced(
        noise=nodes.random_noise(5),
        guider=nodes.basic_guider(model, POSITIVE),
        sampler=method("euler"),
        sigmas=sigmas.basic(model=model, scheduler="karras", steps=2),
        latent_image=latent,
        run=run,
    )
    torch.testing.assert_close(samples(found)[..., 4:], torch.ones(1, 4, 8, 4))
    assert not torch.allclose(samples(found)[..., :4], torch.ones(1, 4, 8, 4), atol=0.1)
    assert found.get("noise_mask") is mask


def test_add_noise_spans_a_schedule(model: DiffusionModel) -> None:
    levels = torch.tensor([5.0, 2.0])
    noise = nodes.random_noise(5)
    blank = nodes.add_noise(model, noise, levels, empty())
    torch.testing.assert_close(samples(blank), 3.0 * noise.drawn(empty()) / model.latent.scale)
    some: LatentValue = {"samples": torch.ones(1, 4, 8, 8)}
    torch.testing.assert_close(samples(nodes.add_noise(model, noise, levels, some)), samples(blank) + 1)
    assert nodes.add_noise(model, noise, levels[:0], some) is some
    assert torch.equal(nodes.no_noise().drawn(some), torch.zeros(1, 4, 8, 8))


def test_every_sampler_can_be_chosen() -> None:
    assert [samplers.choose_sampler(name).name for name in sampler_names()] == list(sampler_names())
    with pytest.raises(InputError, match="'eulr'"):
        samplers.choose_sampler("eulr")


def test_sampler_nodes_set_their_knobs(model: DiffusionModel) -> None:
    chosen = samplers.dpmpp_2m_sde(solver_type="heun", eta=0.5, noise_device="cpu")
    assert chosen.name == "dpmpp_2m_sde" and chosen.noise == "brownian"
    assert dict(chosen.knobs) == {"solver_type": "heun", "eta": 0.5, "s_noise": 1.0}
    assert samplers.dpmpp_3m_sde(noise_device="gpu").noise == "brownian_on_device"
    assert samplers.dpmpp_sde(r=0.3, noise_device="cpu").name == "dpmpp_sde"
    assert dict(samplers.lms(2).knobs) == {"order": 2}
    assert dict(samplers.dpm_adaptive(order=2).knobs)["order"] == 2
    assert dict(samplers.euler_ancestral(0.3).knobs)["eta"] == 0.3
    assert dict(samplers.euler_ancestral_cfg_pp(0.3).knobs)["eta"] == 0.3
    assert dict(samplers.dpmpp_2s_ancestral(0.3).knobs)["eta"] == 0.3
    assert dict(samplers.er_sde(solver_type="ODE").knobs) == {
        "max_stage": 3,
        "noise_scale": PowerNoiseScale(0.0),
        "s_noise": 0.0,
    }
    assert "noise_scale" not in dict(samplers.er_sde(solver_type="ER-SDE").knobs)
    tau = dict(samplers.sa_solver(model=model, use_pece=False, simple_order_2=True).knobs)["tau"]
    assert tau == TauBetween.of_range(model.current_parametrisation(), 0.2, 0.8, 1.0)


def noisy(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Known:
    """A denoiser whose predictions are known: x0 is x · 0.5, the unconditional x0 is x · 0.25."""

    parametrisation = Discrete("eps")
    uncond: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.uncond = x * 0.25
        return x * 0.5


def test_the_two_forms_of_euler_cfg_pp() -> None:
    x, levels = noisy(1, 1, 4, 4, 4), torch.tensor([4.0, 1.0, 0.0])
    other = samplers.euler_cfg_pp("alternative")
    assert other.needs_uncond
    first, second = other.steps(Known(), x, levels, continued_noise(x, 0))
    # slope = (x - 2 · 0.5 x + 0.25 x) / sigma = 0.25 x / sigma
    torch.testing.assert_close(first.x, x + 0.25 * x / 4 * (1 - 4))
    torch.testing.assert_close(second.x, first.x * 0.75)
    assert samplers.euler_cfg_pp("regular") == method("euler_cfg_pp")


def test_lcm_enlarges_on_its_way() -> None:
    x, levels = noisy(3, 1, 4, 4, 6), torch.tensor([8.0, 4.0, 2.0, 0.0])
    chosen = samplers.enlarging_lcm(scale_ratio=2.0, scale_steps=2, upscale_method="nearest-exact")
    steps = list(chosen.steps(Known(), x, levels, continued_noise(x, 7)))
    assert [tuple(step.x.shape[-2:]) for step in steps] == [(6, 9), (8, 12), (8, 12)]
    generator = torch.Generator().manual_seed(7)
    torch.randn(x.shape, generator=generator)  # the initial noise
    drawn = torch.randn(1, 4, 6, 9, generator=generator)
    enlarged = torch.nn.functional.interpolate(x * 0.5, size=(6, 9), mode="nearest-exact")
    torch.testing.assert_close(steps[0].x, enlarged + 4 * drawn)
    torch.testing.assert_close(steps[2].x, steps[1].x * 0.5)
    by_default = samplers.enlarging_lcm(scale_ratio=2.0, upscale_method="bislerp")
    widths = [step.x.shape[-1] for step in by_default.steps(Known(), x, levels, continued_noise(x, 7))]
    assert widths == [9, 12, 12]
    never = samplers.enlarging_lcm(scale_ratio=2.0, scale_steps=0, upscale_method="area")
    assert {s.x.shape for s in never.steps(Known(), x, levels, continued_noise(x, 7))} == {x.shape}


def test_masks_do_not_go_with_an_enlarging_sampler(model: DiffusionModel, run: PlainRun) -> None:
    latent: LatentValue = {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.ones(8, 8)}
    masked = (Cond(POSITIVE[0].context, options={"mask": torch.ones(1, 8, 8)}),)
    for positive, given in ((POSITIVE, latent), (masked, empty())):
        with pytest.raises(InputError, match="changes the latent's size"):
            nodes.sample_custom(
                model=model,
                noise_seed=5,
                cfg=1.0,
                positive=positive,
                negative=NEGATIVE,
                sampler=samplers.enlarging_lcm(scale_ratio=2.0, upscale_method="area"),
                sigmas=sigmas.basic(model=model, scheduler="karras", steps=3),
                latent_image=given,
                run=run,
            )
    found, _ = nodes.sample_custom(
        model=model,
        noise_seed=5,
        cfg=1.0,
        positive=POSITIVE,
        negative=NEGATIVE,
        sampler=samplers.enlarging_lcm(scale_ratio=2.0, upscale_method="area"),
        sigmas=sigmas.basic(model=model, scheduler="karras", steps=3),
        latent_image=empty(),
        run=run,
    )
    assert samples(found).shape == (1, 4, 16, 16)
