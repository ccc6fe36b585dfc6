"""The autoencoder's decoder trained on, with the latents as they are, and finished against a critic."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import loop
import torch
from autoencoder import (
    SCALE,
    AutoencoderRecipe,
    Draws,
    build,
    falling_rate,
    quality,
    reconstruction_loss,
    values,
)
from critic import Critic, losses
from dataset import Pictures
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from loop import Machine, Task
from state import Training, read_tensors
from torch import Tensor, nn

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
    machine: Machine,
) -> None:
    """Train to `recipe.decoder_steps`, resuming from and saving to `work/decoder-state.safetensors`."""
    torch.manual_seed(recipe.seed)
    network = Half(copy.deepcopy(vae)).train().requires_grad_(True).to(machine.device)
    average, critic = copy.deepcopy(network).requires_grad_(False), Critic().to(machine.device)
    parameters = [*network.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    decode = machine.compile(network)
    draws, known = Draws(pictures, machine.device), latents.to(machine.device)

    def passes(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chosen = draws.choose(recipe.batch)
        latent, picture = known[chosen], values(draws.pictures[chosen])
        latent = latent + recipe.latent_noise / SCALE * torch.randn_like(latent)
        with machine.autocast():
            output = decode(latent).float()
            distance, against, verdict = losses(critic, output, picture)
        fit = reconstruction_loss(output, picture, recipe.edge_weight)
        finish = numbers["critic"] * against
        (fit + recipe.feature_weight * distance + finish + verdict).backward()
        return {"fit": fit, "features": distance, "critic": verdict}

    def numbers(step: int, total: int) -> dict[str, float]:
        late = step >= recipe.critic_from * total
        return {"rate": RATE * falling_rate(step, total, 50), "critic": late * recipe.critic_weight}

    task = Task(
        name="decoder",
        training=Training({"decoder": network, "critic": critic}, {"decoder": average}, optimizer),
        path=work / STATE,
        steps=recipe.decoder_steps,
        seed=recipe.seed + 1,
        decay=recipe.average_decay,
        numbers=numbers,
        passes=passes,
        judge=lambda: f"PSNR {quality(refined(vae, work, recipe).to(machine.device), pictures.judged)}",
    )
    loop.run(task, machine)


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
