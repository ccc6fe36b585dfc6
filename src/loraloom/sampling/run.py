"""The driver: from a latent, noise and sigmas to a sampled latent, one `Step` at a time.

chosen = method("dpmpp_2m")
sigmas = sigmas_for(network.parametrisation, "karras", steps=20, method=chosen)
steps = sample(network, CFG(positive, negative, 7.0), latent=latent, noise=initial_noise(latent, seed),
               method=chosen, sigmas=sigmas, seed=seed)
sampled = completed(steps, on_step)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import InputError, LoraloomError
from loraloom.sampling.conditions import prepared
from loraloom.sampling.denoiser import Evaluation, GuidedDenoiser, MaskedDenoiser
from loraloom.sampling.guidance import Guidance, SamplingOptions
from loraloom.sampling.hooks import Adapt
from loraloom.sampling.inputs import repeated
from loraloom.sampling.noise import noise_for, random_like
from loraloom.sampling.samplers.registry import Method
from loraloom.sampling.types import Denoiser, Network, Parametrisation, SampleContext, Step
from loraloom.weights.capacity import clear_about_memory


@dataclass(frozen=True, eq=False, slots=True)
class Sampled:
    """What sampling gives, as the autoencoder reads it, on the CPU.

    latent: (B, C, H, W) the result. denoised: the last prediction of the clean latent.
    """

    latent: Tensor
    denoised: Tensor


@torch.no_grad()
def sample(
    network: Network,
    guidance: Guidance,
    *,
    latent: Tensor,
    noise: Tensor,
    method: Method,
    sigmas: Tensor,
    seed: int,
    noise_mask: Tensor | None = None,
    options: SamplingOptions | None = None,
    adapt: Adapt | None = None,
) -> Generator[Step, None, Sampled]:
    """Sample a latent; the generator's return value is the result (`completed` fetches it).

    guidance: `CFG(positive, negative, scale)`, `Unguided(positive)`, `DualCFG(...)`, `PerpNeg(...)`.
    latent: (B, C, H, W) as the autoencoder writes it; all zeros for text to image.
    noise: (B, C, H, W) from `noise.initial_noise`, or zeros to start from a latent that is noisy already.
    method: a sampler with its knobs, from `registry.method(name, **knobs)`.
    sigmas: (S + 1,) from `schedules.sigmas_for` and `schedules.between`, descending; empty: nothing to do.
    seed: of the noise that the sampler draws on its way.
    noise_mask: (H', W'), (B', H', W') or (B', 1, H', W') at any size; 1 where the latent is made anew.
    options: what nodes attached to the model (`DiffusionModel.option("sampling")`).
    adapt: makes the network with the LoRAs of a single conditioning beside its weights.

    A step's x and denoised are in the network's latent space (`Network.process_latent_out` leads back).
    Raises InputError for noise of another shape, LoraloomError naming the step that is not finite.
    """
    if noise.shape != latent.shape:
        raise InputError(
            f"The noise is {tuple(noise.shape)} but the latent {tuple(latent.shape)}; give both one shape."
        )
    if sigmas.numel() == 0:
        return Sampled(latent, latent)
    with clear_about_memory("sampling at this size"):
        return (
            yield from _sampled(
                network, guidance, latent, noise, method, sigmas, seed, noise_mask, options, adapt
            )
        )


def _sampled(
    network: Network,
    guidance: Guidance,
    latent: Tensor,
    noise: Tensor,
    method: Method,
    sigmas: Tensor,
    seed: int,
    noise_mask: Tensor | None,
    options: SamplingOptions | None,
    adapt: Adapt | None,
) -> Generator[Step, None, Sampled]:
    options = options or SamplingOptions()
    sigmas = sigmas.to("cpu", torch.float32)  # samplers branch on levels: no waiting for a device
    noise = noise.to(network.device, torch.float32)
    start = latent.to(network.device, torch.float32)
    if start.count_nonzero() > 0:
        start = network.process_latent_in(start)
    mask = None if noise_mask is None else mask_like(noise_mask, start)
    context = SampleContext(noise=noise, latent=start, mask=mask, seed=seed, sigmas=sigmas)
    evaluation = _evaluation(network, guidance, options, context, adapt)
    denoise: Denoiser = GuidedDenoiser(evaluation, guidance, options, needs_uncond=method.needs_uncond)
    if mask is not None:
        kept_noise = random_like(noise, seed + 1) if method.own_mask_noise else noise
        denoise = MaskedDenoiser(denoise, start, kept_noise, mask, sigmas, options.mask)
    parametrisation = network.parametrisation
    x = parametrisation.add_noise(
        start, noise, sigmas[0], max_denoise=_is_top(parametrisation, float(sigmas[0]))
    )
    denoised = x
    for step in method.steps(denoise, x, sigmas, noise_for(method.noise, x, sigmas, seed)):
        if not torch.isfinite(step.x).all():
            raise _not_finite(step, len(sigmas) - 1, network)
        x, denoised = step.x, step.denoised
        yield step
    x = parametrisation.remove_noise_scale(x, sigmas[-1])
    return Sampled(network.process_latent_out(x).cpu(), network.process_latent_out(denoised).cpu())


def completed(
    steps: Generator[Step, None, Sampled], on_step: Callable[[Step], None] | None = None
) -> Sampled:
    """Run the steps to their end, showing each to `on_step` (which may raise to stop). → the result."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        if on_step is not None:
            on_step(step)


def mask_like(mask: Tensor, latent: Tensor) -> Tensor:
    """A noise mask of any size → (B, 1, H, W), resized as images are and repeated over the batch."""
    mask = mask.to(latent).reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] != latent.shape[-2:]:
        mask = torch.nn.functional.interpolate(mask, size=latent.shape[-2:], mode="bilinear")
    return repeated(mask, latent.shape[0])


def _evaluation(
    network: Network,
    guidance: Guidance,
    options: SamplingOptions,
    context: SampleContext,
    adapt: Adapt | None,
) -> Evaluation:
    sides = dict(guidance.sides())
    sides |= {name: (extra.conditioning, extra.role) for name, extra in options.extra}
    return Evaluation(network, prepared(network, sides, context), adapt)


def _is_top(parametrisation: Parametrisation, sigma: float) -> bool:
    """Whether sampling starts from noise alone."""
    highest = parametrisation.sigma_max
    return sigma > highest or math.isclose(highest, sigma, rel_tol=1e-5)


def _not_finite(step: Step, total: int, network: Network) -> LoraloomError:
    return LoraloomError(
        f"Step {step.index + 1} of {total} (sigma {float(step.sigma):.4g}) gave values that are not finite; "
        f"the network computes in {network.dtype_name}. Try --dtype fp32 or bf16, fewer or weaker LoRAs, or "
        "a lower cfg."
    )
