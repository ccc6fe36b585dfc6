"""Rough pictures of a latent while it is being sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image as PillowImage
from torch import Tensor

from loraloom.models.family import LatentFormat
from loraloom.models.handles import DiffusionModel
from loraloom.sampling.types import Step


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """The predicted clean latent of a step (C, H, W), turned into a picture only when somebody looks."""

    latent: Tensor
    format: LatentFormat

    def picture(self, longest_side: int = 512) -> PillowImage.Image:
        """A picture of the first latent of the batch, at most `longest_side` pixels wide or high."""
        factors = torch.tensor(self.format.rgb)  # (C, 3)
        bias = torch.tensor(self.format.rgb_bias)
        rgb = self.latent.movedim(0, -1).float().cpu() @ factors + bias
        pixels = ((rgb + 1) * 127.5).nan_to_num(0).clamp(0, 255).to(torch.uint8)
        picture = PillowImage.fromarray(pixels.numpy())
        scale = min(self.format.downscale, longest_side / max(picture.size))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, PillowImage.Resampling.BICUBIC)


def preview_of(model: DiffusionModel, step: Step) -> LatentPreview | None:
    """The preview of a step; None for families without colour factors."""
    if not model.latent.rgb:
        return None
    return LatentPreview(step.denoised[0].detach(), model.latent)
