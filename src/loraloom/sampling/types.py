"""The contracts of sampling: what a network, a denoiser, a sampler and a conditioning are.

Legend: B batch, C latent channels, H and W latent height and width, T tokens, D context width.
Sigma is the noise level of the variance-exploding view (Karras et al. 2022) for eps and v models, and the
flow time in [0, 1] for flow models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from loraloom.sampling.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Cond:
    """One entry of a CONDITIONING.

    context: (1, T, D) hidden states of the text encoders.
    pooled: (1, P) pooled output, for families that use one.
    options: everything that nodes attach, under ComfyUI's names: "area" (H, W, y, x in eights of pixels, or
        ("percentage", …)), "strength", "mask" (B, H, W), "mask_strength", "set_area_to_bounds",
        "start_percent", "end_percent", "guidance", "width", "height", "crop_w", "crop_h",
        "target_width", "target_height", "aesthetic_score", "concat_latent_image", "concat_mask",
        "hooks", …; and "latent_encoders", the kinds of autoencoder that wrote the latents among them.
    mask: (1, T) 1 where context holds a token, 0 where it is padding; None: all are tokens.
    extras: what else a family's encoders say, by the family's own names ("t5_ids" (1, N) …).
    recipe: the name of the one (`models.recipe`) that a prompt was encoded by; "": not known.
    """

    context: Tensor
    pooled: Tensor | None = None
    options: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())
    mask: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())
    recipe: str = ""


Conditioning: TypeAlias = tuple[Cond, ...]


class Parametrisation(Protocol):
    """How a network's output becomes a prediction of the clean latent: eps, v, or flow.

    sigmas: (N,) the model's table of noise levels, ascending.
    """

    @property
    def sigmas(self) -> Tensor: ...
    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    @property
    def is_flow(self) -> bool: ...

    def timestep(self, sigma: Tensor) -> Tensor:
        """The network's time input for noise levels of any shape."""
        ...

    def sigma(self, timestep: Tensor) -> Tensor: ...

    def percent_to_sigma(self, percent: float) -> float:
        """Noise level at a fraction of the sampling range: 0 is the start (all noise), 1 the end."""
        ...

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What the network is fed for x; sigma broadcasts over (B, C, H, W)."""
        ...

    def denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The clean latent x0 that `output` means."""
        ...

    def add_noise(self, latent: Tensor, noise: Tensor, sigma: Tensor, *, max_denoise: bool) -> Tensor: ...

    def remove_noise_scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Undo the scale that `add_noise` gives a latent, once sampling has ended at `sigma`."""
        ...


@dataclass(frozen=True, slots=True)
class SampleContext:
    """What a network may want to know of the run when it turns a conditioning into inputs.

    noise: (B, C, H, W) initial noise.
    latent: (B, C, H, W) the latent that sampling starts from, as the network sees it.
    mask: (B, C, H, W) noise mask, 1 where the latent is made anew; None: everywhere.
    role: "positive" or "negative" (or what else the guidance calls it), for defaults that differ.
    sigmas: (S + 1,) the levels of the run, where it has steps.
    """

    noise: Tensor
    latent: Tensor
    mask: Tensor | None = None
    seed: int = 0
    role: str = "positive"
    sigmas: Tensor | None = None


class Network(Protocol):
    """A diffusion network ready to run, as `models` hands it to `sampling`."""

    @property
    def parametrisation(self) -> Parametrisation: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def latent_pixels(self) -> int:
        """Sides of the picture's square that one latent pixel stands for."""
        ...

    @property
    def dtype_name(self) -> str: ...
    @property
    def device(self) -> torch.device:
        """Where it computes: latents are float32 tensors there."""
        ...

    def inputs(self, cond: Cond, context: SampleContext) -> Inputs:
        """Turn one conditioning into network inputs for latents shaped like context.latent."""
        ...

    def __call__(self, x: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
        """x (B, C, H, W) float32, already scaled, timestep (B,) float32, inputs batched to B → output
        (B, C, H, W), of any dtype. Latents with frames are (B, C, F, H, W)."""
        ...

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """Latent as the autoencoder writes it → as the network sees it."""
        ...

    def process_latent_out(self, latent: Tensor) -> Tensor: ...


@runtime_checkable
class SkipsLayers(Protocol):
    """A network that can run without some of its blocks, for guidance that compares with that."""

    def skipping(self, blocks: tuple[tuple[str, int], ...]) -> Network:
        """A view of the network without these blocks, such as ("double", 7) or ("single", 3)."""
        ...


class Denoiser(Protocol):
    """x (B, C, H, W) and a scalar sigma → x0, guided. `uncond` is the unconditional x0 of the last call,
    for the samplers of the CFG++ kind (None before the first call)."""

    @property
    def parametrisation(self) -> Parametrisation: ...
    @property
    def uncond(self) -> Tensor | None: ...

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


Noise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(sigma, next sigma) → standard normal noise shaped like the latent."""


class SizedNoise(Protocol):
    """What "continued" noise can do beside: draw in another shape, for samplers that enlarge the latent."""

    def __call__(self, sigma: Tensor, following: Tensor, shape: torch.Size | None = None) -> Tensor: ...


NoiseKind: TypeAlias = Literal["continued", "reseeded", "brownian", "brownian_on_device"]
"""Where a sampler's noise comes from.

continued: the generator that drew the initial noise goes on (samplers that use noise only with churn).
reseeded: a generator seeded as that of the initial noise was, whose first draw therefore repeats it.
brownian: increments of one Brownian path over sigma, drawn on the CPU; or on the latent's device.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a sampler: x is the latent after the step, denoised the x0 that led there."""

    index: int
    x: Tensor
    denoised: Tensor
    sigma: Tensor


Sampler: TypeAlias = Callable[..., Iterator[Step]]
"""(denoise: Denoiser, x, sigmas (S+1,) on the CPU, *, noise: Noise, own knobs…) → a Step per sigma interval.
The last Step's x is the result. Progress, previews and cancelling belong to the caller."""

Schedule: TypeAlias = Callable[[Parametrisation, int], Tensor]
"""(parametrisation, steps) → sigmas (steps + 1,), descending, ending in 0."""
