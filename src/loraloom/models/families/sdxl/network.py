"""How SDXL is called: told the picture's size, crop and target size beside the pooled prompt."""

from __future__ import annotations

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.unet_network import forward, image_sizes, told
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond

__all__ = ["forward", "inputs"]


def inputs(cond: Cond, run: Run) -> Inputs:
    sizes = image_sizes(cond.options, run)
    names = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
    return told(cond, run, [sizes[name] for name in names])
