"""Nodes between pictures and latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.engine.node import NodeRun, node
from loraloom.models.tiny_autoencoder import autoencoder_title
from loraloom.nodes.fast import decoded_fast
from loraloom.nodes.sockets import Image, Latent, LatentValue, Vae
from loraloom.runtime.services import services

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.models.handles import Autoencoder
    from loraloom.models.latent_format import LatentFormat


@node("VAEDecode", category="latent", display_name="VAE Decode")
def vae_decode(samples: Latent, vae: Vae, *, run: NodeRun) -> Image:
    """Turn latents into pictures."""
    tell_foreign(samples, vae, run)
    images = decoded_fast(samples, run)
    if images is None:
        images = services(run).memory.autoencoder(vae).decode(samples["samples"])
    return images.reshape(-1, *images.shape[-3:])


def tell_foreign(latent: LatentValue, vae: Autoencoder, run: NodeRun) -> None:
    """Warns where a model's latents meet an autoencoder of another kind that has as many channels: what it
    decodes is a picture of wrong colours, not an error."""
    decoders = latent.get("decoders", (vae.kind.name,))
    if vae.kind.name not in decoders:
        run.warn(
            f"the latent is for a {autoencoder_title(decoders[0])} and this VAE is a {vae.kind.title}: the"
            " picture's colours will be wrong. Load the VAE of the model that made the latent"
        )


def tell_foreign_picture(latent: LatentValue, latents: LatentFormat, run: NodeRun) -> None:
    """Warns where a picture meets a model that it was not encoded for, as `tell_foreign`."""
    encoder = latent.get("encoder", latents.autoencoder)
    if encoder not in latents.decoders:
        run.warn(
            f"the picture was encoded by a {autoencoder_title(encoder)} and this model is for a "
            f"{autoencoder_title(latents.autoencoder)}: it will hardly see it. Load the VAE of this model"
        )


@node("VAEEncode", category="latent", display_name="VAE Encode")
def vae_encode(pixels: Image, vae: Vae, *, run: NodeRun) -> Latent:
    """Turn pictures into latents; sides are cropped to multiples of 8."""
    return encoded(services(run).memory.autoencoder(vae).encode(pixels[..., :3]), vae)


def encoded(samples: Tensor, vae: Autoencoder) -> LatentValue:
    """What an autoencoder made of pictures, (B, C, h, w)."""
    framed = samples[:, :, None] if vae.kind.framed else samples
    return LatentValue(samples=framed, encoder=vae.kind.name)
