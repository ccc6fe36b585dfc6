"""The demo's UNet and text encoder, trained together on cached latents."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import workers
from attention import HalfAttention
from autoencoder import SCALE, Encoded, seeded
from captions import Captioner, stack
from dataset import training_pairs
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from identity import begin_as_identity
from pictures import SIDE, STYLES, Concept
from state import Training, follow, read_tensors, resume, save
from torch import Tensor, nn

from loraloom.models.text.clip import ClipConfig, ClipText

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiffusionRecipe:
    """Sizes and numbers of the diffusion training."""

    widths: tuple[int, int, int, int] = (64, 128, 128, 160)
    text: ClipConfig = ClipConfig(
        vocabulary=49408, positions=77, width=64, layers=3, inner=256, quick_gelu=True
    )
    steps: int = 9000
    batch: int = 32
    """Of all processes together."""
    rate: float = 1e-3
    warm_up: int = 200
    cool_down: float = 0.4
    """Share of the steps at the end over which the rate falls to zero. Held constant until then, so that the
    number of steps can be changed while the training runs."""
    weight_limit: float = 60.0
    """The most that a step's error counts."""
    average_decay: float = 0.998
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
    return text(text.embed(tokens), torch.zeros(len(tokens), dtype=torch.long), None, True).hidden


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


@dataclass(frozen=True, slots=True)
class _Sample:
    latent: Tensor
    noise: Tensor
    timestep: Tensor
    tokens: Tensor
    order: Tensor


def _draw(latents: Latents, captioner: Captioner, step: int, recipe: DiffusionRecipe) -> _Sample:
    """This process's share of a step's batch: pictures in shuffled epochs, everything else is drawn."""
    count, share = len(latents.concept), recipe.batch // workers.count()
    begin = step * recipe.batch + workers.number() * share
    chosen: list[int] = []
    for at in range(begin, begin + share):
        epoch, place = divmod(at, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed * 7919 + epoch))
        chosen.append(int(order[place]))
    generator = seeded(recipe.seed, step)
    rows = [captioner.draw(latents.concept[i], STYLES[latents.style[i]], generator) for i in chosen]
    mean, deviation = latents.mean[chosen], latents.deviation[chosen]
    latent = (mean + deviation * torch.randn(mean.shape, generator=generator)) * SCALE
    noise = torch.randn(mean.shape, generator=generator)
    timestep = torch.randint(1000, (len(chosen),), generator=generator)
    tokens, order = stack(rows)
    return _Sample(latent, noise, timestep, tokens, order)


def _rate(step: int, recipe: DiffusionRecipe) -> float:
    left = (recipe.steps - step) / (recipe.cool_down * recipe.steps)
    fall = 1.0 if left >= 1.0 else 0.5 - 0.5 * math.cos(math.pi * max(left, 0.0))
    return recipe.rate * min(1.0, (step + 1) / recipe.warm_up) * fall


def networks(recipe: DiffusionRecipe, text: ClipText) -> Training:
    """A fresh UNet and the text encoder, their averages and the optimizer."""
    torch.manual_seed(recipe.seed)
    made: dict[str, nn.Module] = {"unet": build_unet(recipe), "text": text}
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
    save_every: float,
    compiled: bool,
) -> None:
    """Train to `recipe.steps`, resuming from and saving to `work/diffusion-state.safetensors`.

    text: where the text encoder starts."""
    training = networks(recipe, text)
    unet = training.networks["unet"]
    if compiled:
        unet = torch.compile(unet, dynamic=False)
    path = work / "diffusion-state.safetensors"
    first, table = resume(path, training), noise_table()
    weight = step_weights(recipe)
    saved = began = time.monotonic()
    mean_loss = 0.0
    for step in range(first, recipe.steps):
        training.optimizer.param_groups[0]["lr"] = _rate(step, recipe)
        sample = _draw(latents, captioner, step, recipe)
        signal = table[sample.timestep][:, None, None, None]
        noisy = signal.sqrt() * sample.latent + (1.0 - signal).sqrt() * sample.noise
        states = context(training.networks["text"], sample.tokens)[sample.order]  # pyright: ignore[reportArgumentType]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            (output,) = unet(noisy, sample.timestep, states, return_dict=False)
        errors = (output.float() - sample.noise).square().mean((1, 2, 3))
        loss = (errors * weight[sample.timestep]).mean()
        loss.backward()
        parameters = training.optimizer.param_groups[0]["params"]
        workers.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        training.optimizer.step()
        training.optimizer.zero_grad()
        for name, average in training.averages.items():
            follow(average, training.networks[name], min(recipe.average_decay, (step + 1) / (step + 10)))
        if workers.number():
            continue
        mean_loss += (loss.item() - mean_loss) * max(0.01, 1 / (step - first + 1))
        if step % 50 == 0:
            pace = (time.monotonic() - began) / (step - first + 1)
            log.info("diffusion %d/%d loss %.4f %.2f s/step", step, recipe.steps, mean_loss, pace)
        if time.monotonic() - saved > save_every or step + 1 == recipe.steps:
            save(path, training, step + 1)
            saved = time.monotonic()


def load_averages(work: Path, recipe: DiffusionRecipe) -> tuple[UNet2DConditionModel, ClipText]:
    """The averaged weights of the training so far."""
    tensors, _ = read_tensors(work / "diffusion-state.safetensors")
    unet, text = build_unet(recipe), build_text(recipe)
    for name, module in (("unet", unet), ("text", text)):
        prefix = f"average/{name}/"
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        module.eval().requires_grad_(False)
    return unet, text
