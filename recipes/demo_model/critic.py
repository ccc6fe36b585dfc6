"""A small judge of pictures, trained against the decoder: whether a patch is drawn or came through it.

Its inner features are the decoder's perceptual measure (Larsen et al. 2016), its verdicts the light
adversarial finish (hinge loss, Lim & Ye 2017). So no features of other people's networks are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]
from torch.nn import functional as F

WIDTHS = (32, 64, 96)


class Critic(nn.Module):
    """Three levels of halved size and a verdict for each place of the last."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            convolution = nn.Conv2d(before, width, 4, 2, 1)
            layers.append(
                nn.Sequential(nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2))
            )
            before = width
        self.levels = nn.ModuleList(layers)
        self.verdict = nn.Conv2d(before, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, 3, H, W) in -1…1 → features of every level, verdicts (B, 1, H/8, W/8): above 0 means drawn."""
        features: list[Tensor] = []
        for level in self.levels:
            pictures = level(pictures)
            features.append(pictures)
        return features, self.verdict(pictures)


def losses(critic: Critic, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the decoder is told (distance of features, verdict against it), and what the critic is told.

    Each gives gradients to its own network only, so that all can be added."""
    frozen = {name: value.detach() for name, value in critic.named_parameters()}
    ours, verdict = functional_call(critic, frozen, (output,))
    with torch.no_grad():
        theirs, _ = critic(target)
    distances = [F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-3) for a, b in zip(ours, theirs, strict=True)]
    _, on_ours = critic(output.detach())
    _, on_theirs = critic(target)
    judged = F.relu(1.0 + on_ours).mean() + F.relu(1.0 - on_theirs).mean()
    return torch.stack(distances).mean(), -verdict.mean(), judged
