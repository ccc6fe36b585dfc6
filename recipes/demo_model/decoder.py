"""The autoencoder's decoder trained on, with the latents as they are: it may run beside the diffusion."""

from __future__ import annotations

import copy
import logging
import math
import time
from pathlib import Path

import torch
from autoencoder import SCALE, AutoencoderRecipe, build, reconstruction_loss
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from state import Training, follow, read_tensors, resume, save
from threads import FreeCores
from torch import Tensor, nn

log = logging.getLogger(__name__)

STATE = "decoder-state.safetensors"


def _half(vae: AutoencoderKL) -> nn.Module:
    """The decoding half as one module."""
    return nn.ModuleList([vae.post_quant_conv, vae.decoder])


def train(
    vae: AutoencoderKL,
    latents: Tensor,
    pictures: Tensor,
    weights: Tensor,
    work: Path,
    recipe: AutoencoderRecipe,
    save_every: float,
    threads: int,
) -> None:
    """Train to `recipe.decoder_steps`, resuming from and saving to `work/decoder-state.safetensors`."""
    network = _half(copy.deepcopy(vae)).train().requires_grad_(True)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    training = Training({"decoder": network}, {"decoder": average}, optimizer)
    path, total = work / STATE, recipe.decoder_steps
    first = resume(path, training)
    cores, saved, began = FreeCores(threads), time.monotonic(), time.monotonic()
    for step in range(first, total):
        cores.follow()
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        latent, picture = _draw(latents, pictures, weights, step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            output = network[1](network[0](latent))  # pyright: ignore[reportIndexIssue]
        loss = reconstruction_loss(output.float(), picture, recipe.edge_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, network, min(recipe.average_decay, (step + 1) / (step + 10)))
        if step % 50 == 0:
            pace = (time.monotonic() - began) / (step - first + 1)
            log.info("decoder %d/%d fit %.4f %.2f s/step", step, total, loss.item(), pace)
        if time.monotonic() - saved > save_every or step + 1 == total:
            save(path, training, step + 1)
            saved = time.monotonic()


def _draw(
    latents: Tensor, pictures: Tensor, weights: Tensor, step: int, recipe: AutoencoderRecipe
) -> tuple[Tensor, Tensor]:
    """Crops of latents (8×8) and of their pictures (64×64); every fourth step one whole picture."""
    generator = torch.Generator().manual_seed(recipe.seed * 2_000_003 + step)
    whole = step % 4 == 3
    chosen = torch.multinomial(
        weights, 1 if whole else recipe.crop_batch, replacement=True, generator=generator
    )
    latent, picture = latents[chosen], pictures[chosen]
    if not whole:
        corners = torch.randint(0, 9, (len(chosen), 2), generator=generator).tolist()
        latent = torch.stack([z[:, y : y + 8, x : x + 8] for z, (y, x) in zip(latent, corners, strict=True)])
        picture = torch.stack(
            [p[:, 8 * y : 8 * y + 64, 8 * x : 8 * x + 64] for p, (y, x) in zip(picture, corners, strict=True)]
        )
    noise = recipe.latent_noise / SCALE * torch.randn(latent.shape, generator=generator)
    return latent + noise, picture.float() / 127.5 - 1.0


def refined(vae: AutoencoderKL, work: Path, recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The autoencoder with the decoder as trained so far (averaged), where there is one."""
    path = work / STATE
    if not path.exists():
        return vae
    tensors, _ = read_tensors(path)
    made = build(recipe)
    made.load_state_dict(vae.state_dict())
    prefix = "average/decoder/"
    _half(made).load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    return made.eval().requires_grad_(False)
