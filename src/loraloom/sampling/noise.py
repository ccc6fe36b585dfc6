"""Noise as ComfyUI draws it, from generators of our own: the global random state is neither read nor set.

Everything is drawn in float32 on the CPU and moved, so that a seed means the same on every device; only
`brownian_on_device` draws where the latent lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

from loraloom.sampling.types import Noise, NoiseKind, SizedNoise

TREE_DIGITS = 6
"""Torchsde rounds the ends of a tree to its tolerance, and warns of times beyond them."""


class _BrownianPath(Protocol):
    def __call__(self, t: float, tb: float) -> Tensor: ...


def generator(seed: int) -> torch.Generator:
    """A CPU generator that gives what `torch.manual_seed(seed)` would."""
    return torch.Generator("cpu").manual_seed(seed)


def initial_noise(latent: Tensor, seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Noise shaped like `latent` (B, …), drawn for the whole batch at once.

    batch_index: place of each latent in the batch that it was taken from; equal places get equal noise, and
    each the noise that it would have in that batch.
    """
    source = generator(seed)
    if batch_index is None:
        return torch.randn(latent.shape, generator=source)
    wanted = list(batch_index)[: latent.shape[0]]
    wanted += [wanted[-1]] * (latent.shape[0] - len(wanted))
    drawn = {i: torch.randn((1, *latent.shape[1:]), generator=source) for i in range(max(wanted) + 1)}
    return torch.cat([drawn[i] for i in wanted])


def random_like(latent: Tensor, seed: int) -> Tensor:
    """(B, …) standard normal noise on the latent's device."""
    return torch.randn(latent.shape, generator=generator(seed)).to(latent)


def noise_for(kind: NoiseKind, x: Tensor, sigmas: Tensor, seed: int) -> Noise:
    """The noise that a sampler draws on its way."""
    match kind:
        case "continued":
            return continued_noise(x, seed)
        case "reseeded":
            return reseeded_noise(x, seed)
        case "brownian" | "brownian_on_device":
            return brownian_noise(x, sigmas, seed, on_device=kind == "brownian_on_device")


def continued_noise(x: Tensor, seed: int) -> SizedNoise:
    """Goes on where `initial_noise` of the same seed and shape ended."""
    source: list[torch.Generator] = []

    def draw(sigma: Tensor, following: Tensor, shape: torch.Size | None = None) -> Tensor:
        if not source:
            source.append(generator(seed))
            torch.randn(x.shape, generator=source[0])
        return torch.randn(x.shape if shape is None else shape, generator=source[0]).to(x)

    return draw


def reseeded_noise(x: Tensor, seed: int) -> Noise:
    """A stream of its own from the same seed; its first draw equals the initial noise of that shape."""
    source = generator(seed)

    def draw(sigma: Tensor, following: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=source).to(x)

    return draw


def brownian_noise(x: Tensor, sigmas: Tensor, seed: int, *, on_device: bool = False) -> Noise:
    """Increments of one Brownian path over sigma, scaled to unit variance (torchsde's Brownian tree).

    The same path whatever the steps, so that more of them refine a picture instead of changing it.
    """
    import torchsde

    where = x.device if on_device else torch.device("cpu")

    @cache
    def path() -> tuple[_BrownianPath, float, float]:
        low, high = sigmas[sigmas > 0].min().to(where), sigmas.max().to(where)
        tree = torchsde.BrownianTree(low, torch.zeros_like(x, device=where), high, entropy=seed)
        return cast(_BrownianPath, tree), round(float(low), TREE_DIGITS), round(float(high), TREE_DIGITS)

    def draw(sigma: Tensor, following: Tensor) -> Tensor:
        tree, low, high = path()
        start, end = (min(max(float(level), low), high) for level in (sigma, following))
        increment = tree(min(start, end), max(start, end)) * (1 if start < end else -1)
        return (increment / (following - sigma).abs().sqrt().to(where)).to(x)

    return draw
