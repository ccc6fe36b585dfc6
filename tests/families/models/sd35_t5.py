"""Stable Diffusion 3.5 with all three encoders, narrow."""

from __future__ import annotations

from functools import partial

from tests.families.autoencoders import write_sd3
from tests.families.bench import Narrow
from tests.families.models import sd35
from tests.narrow_models import write_clip_g, write_clip_l, write_wide_t5

NARROW = Narrow(
    name="sd35_t5",
    network=partial(sd35.network, "fam.sd35_t5", 320),
    clip_type="sd3",
    encoders={"clip_l": write_clip_l, "clip_g": write_clip_g, "t5xxl_320": write_wide_t5},
    autoencoder=write_sd3,
    loras=sd35.lora_files,
)
