"""The driver: from a latent, noise and sigmas to a sampled latent, one `Step` at a time.

    steps = sample(network, CFG(positive, negative, 7.0), latent=latent, noise=noise,
                   method=method("euler"), sigmas=sigmas, seed=seed)
    sampled = completed(steps, on_step)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from loraloom.sampling.guidance import Guidance, SamplingOptions
from loraloom.sampling.samplers.registry import Method
from loraloom.sampling.types import Network, Step


@dataclass(frozen=True, slots=True)
class Sampled:
    """What sampling gives, as the autoencoder reads it.

    latent: (B, C, H, W) the result. denoised: the last prediction of the clean latent.
    """

    latent: Tensor
    denoised: Tensor


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
) -> Generator[Step, None, Sampled]:
    """Sample a latent; the generator's return value is the result (`completed` fetches it).

    network: on its device; x, noise and masks are moved there.
    guidance: `CFG(positive, negative, scale)`, `Unguided(positive)`, `DualCFG(...)`, `PerpNeg(...)`.
    latent: (B, C, H, W) as the autoencoder writes it; all zeros for text to image.
    noise: (B, C, H, W) from `noise.initial_noise`, or zeros to start from a latent that is noisy already.
    method: a sampler with its knobs, from `registry.method(name, **knobs)`.
    sigmas: (S + 1,) from `schedules.sigmas_for` (and `schedules.between`); descending.
    noise_mask: (H', W'), (B', H', W') or (B', 1, H', W') at any size; 1 where the latent is made anew.
    options: what nodes attached to the model (`DiffusionModel.option("sampling")`).

    A step's x and denoised are in the network's latent space (`Network.process_latent_out` leads back).
    Raises LoraloomError when a step is not finite, naming it.
    """
    raise NotImplementedError


def completed(steps: Generator[Step, None, Sampled], on_step: Callable[[Step], None] | None = None) -> Sampled:
    """Run the steps to their end, showing each to `on_step`, and return the result."""
    raise NotImplementedError
