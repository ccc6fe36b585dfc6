"""KSampler and KSamplerAdvanced."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from loraloom.engine.node import Choice, NodeRun, Number, node
from loraloom.errors import InputError
from loraloom.models.handles import DiffusionModel
from loraloom.models.latent_format import LatentFormat
from loraloom.models.token_merging import RATIO, has_levels
from loraloom.nodes.autoencoding import tell_foreign_picture
from loraloom.nodes.fast import report_fast
from loraloom.nodes.hooked_model import hooked_network, report_hooks
from loraloom.nodes.sockets import Cfg, Conditioning, EnableDisable, Latent, LatentValue, Model, Seed, Steps
from loraloom.runtime.services import services
from loraloom.sampling.guidance import CFG, Guidance, SamplingOptions
from loraloom.sampling.noise import initial_noise
from loraloom.sampling.reuse import Reusing
from loraloom.sampling.run import completed, sample
from loraloom.sampling.samplers.registry import Method, method, sampler_names
from loraloom.sampling.schedules import between, schedule_names, sigmas_for
from loraloom.sampling.types import Step

SamplerName = Annotated[str, Choice(sampler_names)]
SchedulerName = Annotated[str, Choice(schedule_names)]


@node("KSampler", category="sampling", display_name="KSampler")
def ksampler(
    *,
    model: Model,
    seed: Seed = 0,
    steps: Steps = 20,
    cfg: Cfg = 8.0,
    sampler_name: SamplerName,
    scheduler: SchedulerName,
    positive: Conditioning,
    negative: Conditioning,
    latent_image: Latent,
    denoise: Annotated[float, Number(min=0.0, max=1.0, step=0.01)] = 1.0,
    run: NodeRun,
) -> Latent:
    """Sample latents: `denoise` below 1 keeps that much less of the noise, and so more of the latent."""
    sampler = method(sampler_name)
    sigmas = sigmas_for(model.current_parametrisation(), scheduler, steps, denoise, method=sampler)
    guidance = CFG(positive, negative, cfg)
    result, _ = sample_latent(
        model, guidance, latent_image, sampler, sigmas, seed=seed, add_noise=True, run=run
    )
    return result


@node("KSamplerAdvanced", category="sampling", display_name="KSampler (Advanced)")
def ksampler_advanced(
    *,
    model: Model,
    add_noise: Annotated[str, EnableDisable],
    noise_seed: Seed = 0,
    steps: Steps = 20,
    cfg: Cfg = 8.0,
    sampler_name: SamplerName,
    scheduler: SchedulerName,
    positive: Conditioning,
    negative: Conditioning,
    latent_image: Latent,
    start_at_step: Annotated[int, Number(min=0, max=10000)] = 0,
    end_at_step: Annotated[int, Number(min=0, max=10000)] = 10000,
    return_with_leftover_noise: Annotated[str, Choice(("disable", "enable"))],
    run: NodeRun,
) -> Latent:
    """Sample some of the steps of a schedule, with or without noise at the start and left at the end."""
    sampler = method(sampler_name)
    whole = sigmas_for(model.current_parametrisation(), scheduler, steps, method=sampler)
    full = return_with_leftover_noise == "disable"
    sigmas = between(whole, start_at_step, end_at_step, full_denoise=full)
    result, _ = sample_latent(
        model,
        CFG(positive, negative, cfg),
        latent_image,
        sampler,
        sigmas,
        seed=noise_seed,
        add_noise=add_noise == "enable",
        run=run,
    )
    return result


def sample_latent(
    model: DiffusionModel,
    guidance: Guidance,
    latent: LatentValue,
    sampler: Method,
    sigmas: Tensor,
    *,
    seed: int,
    add_noise: bool,
    run: NodeRun,
) -> tuple[LatentValue, LatentValue]:
    """Run a sampler on a LATENT with progress, previews and cancelling; other keys of the latent are kept.

    → the result, and the last prediction of the clean latent."""
    samples = fitting(latent, model.latent)
    tell_foreign_picture(latent, model.latent, run)
    index = latent.get("batch_index")
    noise = initial_noise(samples, seed, index) if add_noise else torch.zeros_like(samples)
    chosen = model.option("sampling")
    options = chosen if isinstance(chosen, SamplingOptions) else None
    report_hooks(model, guidance, options, run)
    total = max(len(sigmas) - 1, 1)
    found = services(run)
    preview_of = found.previews.of(
        model.latent, found.folders, found.memory, run.warn, model.weights.metadata
    )

    def on_step(step: Step) -> None:
        run.progress(step.index + 1, total, preview_of(step))

    with found.memory.apart() if sampler.adaptive else nullcontext():
        network = found.memory.network(model)
        reusing = Reusing(network) if "steps" in found.memory.computing.fast else None
        sampled = completed(
            sample(
                reusing or network,
                guidance,
                latent=samples,
                noise=noise,
                method=sampler,
                sigmas=sigmas,
                seed=seed,
                noise_mask=latent.get("noise_mask"),
                options=options,
                adapt=partial(hooked_network, model, run),
            ),
            on_step,
        )
    if (joined := found.memory.joined) is not None and (said := joined.said()) is not None:
        run.note("batch", {**said})
    if reusing is not None:
        said = f"{reusing.reused} of {reusing.asked} evaluations were left out"
        report_fast("steps", said, run)
    if "tokens" in found.memory.computing.fast:
        does = has_levels(network.config)
        said = (
            f"{RATIO:.0%} of the tokens of the largest level were merged" if does else "nothing to merge here"
        )
        report_fast("tokens", said, run)
    kept = latent.copy()
    kept.pop("downscale_ratio_spacial", None)  # said of empty latents only
    kept.pop("encoder", None)
    kept["decoders"] = model.latent.decoders
    last, clean = (_framed(made, model.latent) for made in (sampled.latent, sampled.denoised))
    return {**kept, "samples": last}, {**kept, "samples": clean}


def _framed(samples: Tensor, latents: LatentFormat) -> Tensor:
    """Samples as LATENT sockets carry them."""
    return samples[:, :, None] if latents.framed and samples.ndim == 4 else samples


def fitting(latent: LatentValue, latents: LatentFormat) -> Tensor:
    """Latents as the network wants them: an empty one of another family is given the right channels, and the
    size that makes as large a picture; the dimension of a single frame is dropped.

    Raises InputError for latents that hold a picture of another family."""
    samples = latent["samples"]
    if samples.ndim == 5 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    if samples.ndim == 5 and not latents.frames:
        raise InputError(
            f"the latent has {samples.shape[2]} frames; this model makes single pictures. "
            "LatentCutToBatch makes a batch of them"
        )
    is_empty = torch.count_nonzero(samples) == 0
    if samples.shape[1] != latents.channels and not is_empty:
        raise InputError(
            f"the latent has {samples.shape[1]} channels and this model works on {latents.channels}: "
            "it was made with the autoencoder of another model family"
        )
    if not is_empty:
        return samples
    ratio = latent.get("downscale_ratio_spacial", latents.pixels) / latents.pixels
    height, width = (max(round(side * ratio), 1) for side in samples.shape[-2:])
    return samples.new_zeros(samples.shape[0], latents.channels, *samples.shape[2:-2], height, width)
