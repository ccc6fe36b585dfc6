"""Sampling in parts: noise, guider, sampler and schedule as values that nodes pass on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from loraloom.engine.node import Choice, NodeRun, Number, Socket, node
from loraloom.nodes.samplers import Sampler
from loraloom.nodes.sampling import sample_latent
from loraloom.nodes.sockets import Cfg, Conditioning, Latent, LatentValue, Model, Seed, Sigmas
from loraloom.sampling.guidance import CFG, DualCFG, Guidance, PerpNeg, Unguided
from loraloom.sampling.noise import initial_noise

if TYPE_CHECKING:
    from loraloom.models.handles import DiffusionModel

EXTRA = "comfy_extras.nodes_custom_sampler"
GUIDERS = "sampling/custom_sampling/guiders"
NOISE = "sampling/custom_sampling/noise"


@dataclass(frozen=True, eq=False, slots=True)
class GuiderValue:
    """A model and how its predictions are guided."""

    model: DiffusionModel
    guidance: Guidance


@dataclass(frozen=True, slots=True)
class NoiseValue:
    """Where initial noise comes from: a seed, or nowhere."""

    seed: int = 0
    enabled: bool = True

    def drawn(self, latent: LatentValue) -> Tensor:
        if not self.enabled:
            return torch.zeros_like(latent["samples"])
        return initial_noise(latent["samples"], self.seed, latent.get("batch_index"))


Guider = Annotated[GuiderValue, Socket("GUIDER")]
NoiseSource = Annotated[NoiseValue, Socket("NOISE")]
NegativeScale = Annotated[float, Number(min=0.0, max=100.0, step=0.01)]


@node(
    "SamplerCustom",
    category="sampling/custom_sampling",
    display_name="SamplerCustom",
    outputs=("output", "denoised_output"),
    python_module=EXTRA,
)
def sample_custom(
    *,
    model: Model,
    add_noise: bool = True,
    noise_seed: Seed = 0,
    cfg: Cfg = 8.0,
    positive: Conditioning,
    negative: Conditioning,
    sampler: Sampler,
    sigmas: Sigmas,
    latent_image: Latent,
    run: NodeRun,
) -> tuple[Latent, Latent]:
    """Sample a latent with a chosen sampler and schedule; the second output is the last clean prediction."""
    guider = GuiderValue(model, CFG(positive, negative, cfg))
    return _sampled(guider, NoiseValue(noise_seed, add_noise), sampler, sigmas, latent_image, run)


@node(
    "SamplerCustomAdvanced",
    category="sampling/custom_sampling",
    display_name="SamplerCustomAdvanced",
    outputs=("output", "denoised_output"),
    python_module=EXTRA,
)
def sample_custom_advanced(
    *,
    noise: NoiseSource,
    guider: Guider,
    sampler: Sampler,
    sigmas: Sigmas,
    latent_image: Latent,
    run: NodeRun,
) -> tuple[Latent, Latent]:
    """Sample a latent from its parts; the second output is the last clean prediction."""
    return _sampled(guider, noise, sampler, sigmas, latent_image, run)


def _sampled(
    guider: GuiderValue,
    noise: NoiseValue,
    sampler: Sampler,
    sigmas: Tensor,
    latent: LatentValue,
    run: NodeRun,
) -> tuple[LatentValue, LatentValue]:
    return sample_latent(
        guider.model,
        guider.guidance,
        latent,
        sampler,
        sigmas,
        seed=noise.seed,
        add_noise=noise.enabled,
        run=run,
    )


@node("CFGGuider", category=GUIDERS, display_name="CFGGuider", python_module=EXTRA)
def cfg_guider(model: Model, positive: Conditioning, negative: Conditioning, cfg: Cfg = 8.0) -> Guider:
    """Guide away from the negative prompt, towards the positive one."""
    return GuiderValue(model, CFG(positive, negative, cfg))


@node("DualCFGGuider", category=GUIDERS, display_name="DualCFGGuider", python_module=EXTRA)
def dual_cfg_guider(
    *,
    model: Model,
    cond1: Conditioning,
    cond2: Conditioning,
    negative: Conditioning,
    cfg_conds: Cfg = 8.0,
    cfg_cond2_negative: Cfg = 8.0,
    style: Annotated[str, Choice(("regular", "nested"))],
) -> Guider:
    """Guide from the negative prompt to a second and from that to a first, each with its own strength."""
    nested = style == "nested"
    return GuiderValue(model, DualCFG(cond1, cond2, negative, cfg_conds, cfg_cond2_negative, nested))


@node("BasicGuider", category=GUIDERS, display_name="BasicGuider", python_module=EXTRA)
def basic_guider(model: Model, conditioning: Conditioning) -> Guider:
    """Follow one prompt without guidance, as models want that were distilled with it."""
    return GuiderValue(model, Unguided(conditioning))


@node(
    "PerpNegGuider",
    category="_for_testing",
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_perpneg",
)
def perp_neg_guider(
    *,
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    empty_conditioning: Conditioning,
    cfg: Cfg = 8.0,
    neg_scale: NegativeScale = 1.0,
) -> Guider:
    """Guide away from what only the negative prompt says; the empty conditioning is that of no prompt."""
    return GuiderValue(model, PerpNeg(positive, negative, empty_conditioning, cfg, neg_scale))


@node("RandomNoise", category=NOISE, display_name="RandomNoise", python_module=EXTRA)
def random_noise(noise_seed: Seed = 0) -> NoiseSource:
    """Initial noise from a seed."""
    return NoiseValue(noise_seed)


@node("DisableNoise", category=NOISE, display_name="DisableNoise", python_module=EXTRA)
def no_noise() -> NoiseSource:
    """No initial noise, for latents that hold noise already."""
    return NoiseValue(enabled=False)


@node("AddNoise", category="_for_testing/custom_sampling/noise", display_name="AddNoise", python_module=EXTRA)
def add_noise(model: Model, noise: NoiseSource, sigmas: Sigmas, latent_image: Latent) -> Latent:
    """Add the noise that lies between a schedule's first and last level to a latent."""
    if not len(sigmas):
        return latent_image
    level = (sigmas[0] - sigmas[-1]).abs() if len(sigmas) > 1 else sigmas[0]
    samples, form = latent_image["samples"].float(), model.latent
    if samples.count_nonzero() > 0:
        samples = (samples - form.shift) * form.scale
    drawn = noise.drawn(latent_image)
    noisy = model.current_parametrisation().add_noise(samples, drawn, level, max_denoise=False)
    result = latent_image.copy()
    result["samples"] = (noisy / form.scale + form.shift).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return result
