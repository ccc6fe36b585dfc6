"""Nodes between pictures and latents."""

from __future__ import annotations

from loraloom.engine.node import NodeRun, node
from loraloom.nodes.sockets import Image, Latent, LatentValue, Vae
from loraloom.runtime.services import services


@node("VAEDecode", category="latent", display_name="VAE Decode")
def vae_decode(samples: Latent, vae: Vae, *, run: NodeRun) -> Image:
    """Turn latents into pictures."""
    images = services(run).memory.autoencoder(vae).decode(samples["samples"])
    return images.reshape(-1, *images.shape[-3:])


@node("VAEEncode", category="latent", display_name="VAE Encode")
def vae_encode(pixels: Image, vae: Vae, *, run: NodeRun) -> Latent:
    """Turn pictures into latents; sides are cropped to multiples of 8."""
    return LatentValue(samples=services(run).memory.autoencoder(vae).encode(pixels[..., :3]))
