"""What `--fast` did to a picture: told to who looks, in the run's result, and in the picture itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.engine.node import NodeRun
from loraloom.errors import InputError
from loraloom.models.computing import Fast
from loraloom.models.tiny_autoencoder import LATENTS, tiny_kind
from loraloom.nodes.sockets import LatentValue
from loraloom.runtime.services import services
from loraloom.weights.capacity import clear_about_memory, until_it_fits

if TYPE_CHECKING:
    from torch import Tensor


def report_fast(name: Fast, said: str, run: NodeRun) -> None:
    run.warn(f"--fast {name}: {said}")
    run.note("fast", {"node": run.node_id, "name": name, "said": said})


def decoded_fast(latent: LatentValue, run: NodeRun) -> Tensor | None:
    """(B, H, W, 3) what the tiny decoder makes of a sampled latent; None where that was not asked for, or
    where the family has none. InputError where its file is not there."""
    found = services(run)
    if "vae" not in found.memory.computing.fast or "decoders" not in latent:
        return None
    name = next((kind for kind in latent["decoders"] if kind in LATENTS), None)
    if name is None:
        report_fast("vae", "there is no tiny autoencoder for this family, the VAE decodes", run)
        return None
    path = found.folders.approximation(f"{name}_decoder")
    if path is None:
        raise InputError(
            f"--fast vae decodes with {name}_decoder.safetensors, and no folder vae_approx holds it: put it "
            "into models/vae_approx (https://github.com/madebyollin/taesd), or leave --fast vae out"
        )
    samples = latent["samples"]
    scale, shift = LATENTS[name]
    decoder = found.previews.decoder(path, samples.shape[1], found.memory)
    report_fast("vae", f"the {tiny_kind(name).title} {path.name} decoded", run)
    latents = (samples - shift) * scale
    with clear_about_memory("decoding this latent"):
        found.memory.has_room(decoder.bytes_for(latents[0]))
        return until_it_fits(lambda: decoder.pictures(latents), found.memory.give_way)
