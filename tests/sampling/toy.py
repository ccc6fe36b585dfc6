"""The toy network that the figures of `tests/data/parity/samplers.npz` were measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.parametrisation import Discrete, Flow, FluxFlow
from loraloom.sampling.types import Cond, Conditioning, Parametrisation, SampleContext

PARITY = Path(__file__).parent.parent / "data" / "parity"

POSITIVE: Conditioning = (Cond(torch.full((1, 77, 8), 0.5)),)
NEGATIVE: Conditioning = (Cond(torch.full((1, 77, 8), -0.25)),)

KINDS: Mapping[str, tuple[Parametrisation, int, float, float]] = {
    "eps": (Discrete("eps"), 4, 0.18215, 0.0),
    "v": (Discrete("v"), 4, 0.18215, 0.0),
    "flux": (FluxFlow(), 16, 0.3611, 0.1159),
    "sd3": (Flow(), 16, 1.5305, 0.0609),
}
"""Model type → parametrisation, channels, scale and shift of its latents."""


@dataclass
class Toy:
    """out = 0.7 x + 0.2 sin(3 x + t / 500) + 0.1 mean(context). calls: batch size and tokens of each call.

    hook: is shown each call's x; may raise or change the output.
    """

    parametrisation: Parametrisation
    latent_channels: int = 4
    scale: float = 1.0
    shift: float = 0.0
    calls: list[tuple[int, int]] = field(default_factory=lambda: [])
    hook: Callable[[Tensor, Tensor], Tensor] | None = None
    contexts: list[SampleContext] = field(default_factory=lambda: [])
    dtype_name: str = "float32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    latent_pixels: int = 8

    def inputs(self, cond: Cond, context: SampleContext) -> Inputs:
        self.contexts.append(context)
        concat = cond.options.get("concat")
        maps = {"concat": concat} if isinstance(concat, Tensor) else {}
        return Inputs({"context": Tokens(cond.context, "repeat")}, maps=maps)

    def __call__(self, x: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
        context = inputs.tokens["context"].values
        assert x.shape[0] == timestep.shape[0] == context.shape[0]
        self.calls.append((x.shape[0], context.shape[1]))
        out = 0.7 * x + 0.2 * torch.sin(3 * x + timestep[:, None, None, None] / 500)
        out = out + 0.1 * context.mean(dim=(1, 2))[:, None, None, None]
        if "concat" in inputs.maps:
            out = out + inputs.maps["concat"]
        return out if self.hook is None else self.hook(x, out)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift) * self.scale

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale + self.shift


def toy(kind: str = "eps") -> Toy:
    parametrisation, channels, scale, shift = KINDS[kind]
    return Toy(parametrisation, channels, scale, shift)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
