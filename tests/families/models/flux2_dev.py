"""Flux.2 dev, narrow."""

from __future__ import annotations

from functools import partial

from tests.families.autoencoders import write_flux2_vae
from tests.families.bench import Narrow, flux_shift
from tests.families.models.flux2_klein import lora_files, network
from tests.narrow_models import write_mistral

NARROW = Narrow(
    name="flux2_dev",
    network=partial(network, "fam.flux2_dev", guidance=True),
    clip_type="flux2",
    encoders={"mistral_3_small_flux2": write_mistral},
    autoencoder=write_flux2_vae,
    loras=lora_files,
    empty_latent="EmptyFlux2LatentImage",
    shift=flux_shift,
    guidance={"guidance": 4.0, "guidance_off": None},
)
