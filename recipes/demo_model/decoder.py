"""The autoencoder's decoder trained on, with the latents as they are, and finished against a critic."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import torch
import workers
from autoencoder import (
    SCALE,
    AutoencoderRecipe,
    build,
    falling_rate,
    quality,
    reconstruction_loss,
    seeded,
)
from critic import Critic, losses
from dataset import Pictures
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from state import Training, follow, read_tensors, resume, save
from torch import Tensor, nn

log = logging.getLogger(__name__)

STATE = "decoder-state.safetensors"
RATE = 5e-4


class Half(nn.Module):
    """The decoding half of an autoencoder as one module."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.before, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """(B, 4, H/8, W/8) → (B, 3, H, W)."""
        return self.decoder(self.before(latent))


def train(
    vae: AutoencoderKL,
    latents: Tensor,
    pictures: Pictures,
    work: Path,
    recipe: AutoencoderRecipe,
    save_every: float,
    compiled: bool,
) -> None:
    """Train to `recipe.decoder_steps`, resuming from and saving to `work/decoder-state.safetensors`."""
    torch.manual_seed(recipe.seed)
    network = Half(copy.deepcopy(vae)).train().requires_grad_(True)
    average, critic = copy.deepcopy(network).requires_grad_(False), Critic()
    parameters = [*network.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    training = Training({"decoder": network, "critic": critic}, {"decoder": average}, optimizer)
    path, total = work / STATE, recipe.decoder_steps
    first = resume(path, training)
    decode = torch.compile(network, dynamic=False) if compiled else network
    began = saved = judged = time.monotonic()
    for step in range(first, total):
        optimizer.param_groups[0]["lr"] = RATE * falling_rate(step, total, 50)
        latent, picture = _draw(latents, pictures, step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            output = decode(latent).float()
            distance, against, verdict = losses(critic, output, picture)
        fit = reconstruction_loss(output, picture, recipe.edge_weight)
        late = step >= recipe.critic_from * total
        loss = fit + recipe.feature_weight * distance + late * recipe.critic_weight * against + verdict
        loss.backward()
        workers.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, network, min(recipe.average_decay, (step + 1) / (step + 10)))
        if workers.number():
            continue
        if step % 50 == 0:
            pace = (time.monotonic() - began) / (step - first + 1)
            log.info(
                "decoder %d/%d fit %.4f features %.3f critic %.3f %.2f s/step",
                step, total, fit.item(), distance.item(), verdict.item(), pace,
            )  # fmt: skip
        if time.monotonic() - saved > save_every or step + 1 == total:
            save(path, training, step + 1)
            saved = time.monotonic()
        if time.monotonic() - judged > recipe.judge_every or step + 1 == total:
            made = refined(vae, work, recipe)
            log.info("decoder %d/%d PSNR %s", step, total, quality(made, pictures.judged))
            judged = time.monotonic()


def _draw(latents: Tensor, pictures: Pictures, step: int, recipe: AutoencoderRecipe) -> tuple[Tensor, Tensor]:
    """Latents with the noise of sampling, and their pictures in -1…1."""
    generator = seeded(recipe.seed + 1, step)
    chosen = torch.multinomial(pictures.weights, recipe.batch, replacement=True, generator=generator)
    latent, picture = latents[chosen], pictures.seen[chosen]
    noise = recipe.latent_noise / SCALE * torch.randn(latent.shape, generator=generator)
    picture = (picture.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
    return latent + noise, picture


def refined(vae: AutoencoderKL, work: Path, recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The autoencoder with the decoder as trained so far (averaged), where there is one."""
    path = work / STATE
    if not path.exists():
        return vae
    tensors, _ = read_tensors(path)
    made = build(recipe)
    made.load_state_dict(vae.state_dict())
    prefix = "average/decoder/"
    Half(made).load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    return made.eval().requires_grad_(False)
