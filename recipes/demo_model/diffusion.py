"""The demo's UNet and text encoder, trained together on cached latents."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import loop
import torch
import workers
from attention import HalfAttention
from autoencoder import SCALE, Encoded
from captions import Captioner
from dataset import training_pairs
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from identity import begin_as_identity
from loop import Machine, Task
from pictures import SIDE, STYLES, Concept
from state import Training, read_tensors
from torch import Tensor, nn

from loraloom.models.text.clip import ClipConfig, ClipText

STATE = "diffusion-state.safetensors"
CAPTIONS = 256
"""Captions of each picture that are drawn ahead."""


@dataclass(frozen=True, slots=True)
class DiffusionRecipe:
    """Sizes and numbers of the diffusion training."""

    widths: tuple[int, int, int, int] = (64, 128, 128, 160)
    text: ClipConfig = ClipConfig(
        vocabulary=49408, positions=77, width=64, layers=3, inner=256, quick_gelu=True
    )
    steps: int = 9650
    batch: int = 128
    """Of all processes together."""
    rate: float = 1e-3
    warm_up: int = 200
    cool_down: float = 0.4
    """Share of the steps at the end over which the rate falls to zero. Held constant until then, so that the
    number of steps can be changed while the training runs."""
    weight_limit: float = 60.0
    """The most that a step's error counts."""
    average_decay: float = 0.999
    seed: int = 15


def noise_table() -> Tensor:
    """ᾱ of Stable Diffusion's thousand steps ("scaled linear" betas from 0.00085 to 0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1.0 - betas).cumprod(0).float()


def step_weights(recipe: DiffusionRecipe) -> Tensor:
    """Weight of each step's error in the noise: what makes it the error of the velocity (Salimans & Ho 2022).

    The plain error is a tenth as large where all is noise, and there the prompt decides what to draw."""
    return (1.0 / noise_table()).clamp(max=recipe.weight_limit)


def build_unet(recipe: DiffusionRecipe) -> UNet2DConditionModel:
    """The UNet with fresh weights: Stable Diffusion 1.5's topology. It begins by predicting nothing."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=recipe.widths,
        cross_attention_dim=recipe.text.width,
        attention_head_dim=8,
    )
    begin_as_identity(unet)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def build_text(recipe: DiffusionRecipe) -> ClipText:
    """The text encoder with fresh weights, embeddings small as in CLIP."""
    network = ClipText(recipe.text)
    nn.init.normal_(network.text_model.embeddings.token_embedding.weight, std=0.1)
    nn.init.normal_(network.text_model.embeddings.position_embedding.weight, std=0.05)
    return network


def context(text: ClipText, tokens: Tensor) -> Tensor:
    """(B, 77) tokens → (B, 77, D) normed last hidden states."""
    return text(
        text.embed(tokens), torch.zeros(len(tokens), dtype=torch.long, device=tokens.device), None, True
    ).hidden


@dataclass(frozen=True, slots=True)
class Latents:
    """mean, deviation: picture × 4 × 24 × 24, as the encoder gives them (before the scale).
    concept, style: of each picture."""

    mean: Tensor
    deviation: Tensor
    concept: list[int]
    style: list[int]


def choose_latents(concepts: list[Concept], encoded: Encoded) -> Latents:
    """The training pairs of concept and style, which come first in `autoencoder_pictures`."""
    pairs = training_pairs(concepts)
    count = len(pairs)
    return Latents(
        encoded.mean[:count], encoded.deviation[:count], [c for c, _ in pairs], [s for _, s in pairs]
    )


def captions(latents: Latents, captioner: Captioner, seed: int) -> Tensor:
    """(picture, CAPTIONS, 77) token numbers: captions of every picture, drawn ahead."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        [captioner.draw(concept, STYLES[style], generator) for _ in range(CAPTIONS)]
        for concept, style in zip(latents.concept, latents.style, strict=True)
    ]
    return torch.tensor(rows)


def _rate(step: int, total: int, recipe: DiffusionRecipe) -> float:
    left = (total - step) / (recipe.cool_down * total)
    fall = 1.0 if left >= 1.0 else 0.5 - 0.5 * math.cos(math.pi * max(left, 0.0))
    return recipe.rate * min(1.0, (step + 1) / recipe.warm_up) * fall


def networks(recipe: DiffusionRecipe, text: ClipText, device: torch.device) -> Training:
    """A fresh UNet and the text encoder, their averages and the optimizer."""
    torch.manual_seed(recipe.seed)
    made: dict[str, nn.Module] = {"unet": build_unet(recipe).to(device), "text": text.to(device)}
    if device.type == "cpu":
        made["unet"].set_attn_processor(HalfAttention())  # pyright: ignore[reportCallIssue]
    averages = {name: copy.deepcopy(module).requires_grad_(False) for name, module in made.items()}
    parameters = [p for module in made.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    return Training(made, averages, optimizer)


def train(
    latents: Latents,
    captioner: Captioner,
    text: ClipText,
    work: Path,
    recipe: DiffusionRecipe,
    machine: Machine,
) -> None:
    """Train to `recipe.steps`, resuming from and saving to `work/diffusion-state.safetensors`.

    text: where the text encoder starts."""
    training, device = networks(recipe, text, machine.device), machine.device
    unet = machine.compile(training.networks["unet"])
    mean, deviation = latents.mean.to(device), latents.deviation.to(device)
    rows = captions(latents, captioner, recipe.seed).to(device)
    table, weight = noise_table().to(device), step_weights(recipe).to(device)
    share = recipe.batch // workers.count()

    def passes(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chosen = torch.randint(len(mean), (share,), device=device)
        caption = torch.randint(CAPTIONS, (share,), device=device)
        latent = (mean[chosen] + deviation[chosen] * torch.randn_like(mean[chosen])) * SCALE
        noise = torch.randn_like(latent)
        timestep = torch.randint(1000, (share,), device=device)
        signal = table[timestep][:, None, None, None]
        noisy = (signal.sqrt() * latent + (1.0 - signal).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        states = context(training.networks["text"], rows[chosen, caption])  # pyright: ignore[reportArgumentType]
        with machine.autocast():
            output = unet(noisy, timestep, states, return_dict=False)[0]
        errors = (output.float() - noise).square().mean((1, 2, 3))
        loss = (errors * weight[timestep]).mean()
        loss.backward()
        return {"loss": loss}

    task = Task(
        name="diffusion",
        training=training,
        path=work / STATE,
        steps=recipe.steps,
        seed=recipe.seed,
        decay=recipe.average_decay,
        numbers=lambda step, total: {"rate": _rate(step, total, recipe)},
        passes=passes,
    )
    loop.run(task, machine)


def load_averages(work: Path, recipe: DiffusionRecipe) -> tuple[UNet2DConditionModel, ClipText]:
    """The averaged weights of the training so far."""
    tensors, _ = read_tensors(work / STATE)
    unet, text = build_unet(recipe), build_text(recipe)
    for name, module in (("unet", unet), ("text", text)):
        prefix = f"average/{name}/"
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        module.eval().requires_grad_(False)
    return unet, text
