"""Nodes between pictures and latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.engine.node import NodeRun, node
from loraloom.models.autoencoder import autoencoder_kinds
from loraloom.nodes.sockets import Image, Latent, LatentValue, Vae
from loraloom.runtime.services import services

if TYPE_CHECKING:
    from loraloom.models.handles import Autoencoder


@node("VAEDecode", category="latent", display_name="VAE Decode")
def vae_decode(samples: Latent, vae: Vae, *, run: NodeRun) -> Image:
    """Turn latents into pictures."""
    tell_foreign(samples, vae, run)
    images = services(run).memory.autoencoder(vae).decode(samples["samples"])
    return images.reshape(-1, *images.shape[-3:])


def tell_foreign(latent: LatentValue, vae: Autoencoder, run: NodeRun) -> None:
    """Warns where a model's latents meet an autoencoder of another kind that has as many channels: what it
    decodes is a picture of wrong colours, not an error."""
    kinds, wanted = autoencoder_kinds(), latent.get("autoencoder", vae.kind.name)
    if vae.kind.name != wanted and vae.kind.name in kinds and wanted in kinds:
        run.warn(
            f"the latent is for a {kinds[wanted].title} and this VAE is a {vae.kind.title}: the picture's "
            "colours will be wrong. Load the VAE of the model that made the latent"
        )


@node("VAEEncode", category="latent", display_name="VAE Encode")
def vae_encode(pixels: Image, vae: Vae, *, run: NodeRun) -> Latent:
    """Turn pictures into latents; sides are cropped to multiples of 8."""
    return LatentValue(samples=services(run).memory.autoencoder(vae).encode(pixels[..., :3]))
