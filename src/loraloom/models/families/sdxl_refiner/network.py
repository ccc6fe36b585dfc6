"""How SDXL's refiner is called: told size, crop and an aesthetic score."""

from __future__ import annotations

from typing import cast

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.unet_network import forward, image_sizes, told
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond

__all__ = ["forward", "inputs"]


def inputs(cond: Cond, run: Run) -> Inputs:
    sizes = image_sizes(cond.options, run)
    default = 2.5 if run.sample.role == "negative" else 6.0
    score = cast(float, cond.options.get("aesthetic_score", default))
    return told(cond, run, [*(sizes[name] for name in ("height", "width", "crop_h", "crop_w")), score])
