"""The demo's UNet and text encoder, trained together on cached latents."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from attention import HalfAttention
from autoencoder import SCALE, Encoded
from captions import Captioner, stack
from dataset import held_out
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pictures import STYLES, Concept
from state import Training, follow, read_tensors, resume, save
from threads import FreeCores
from torch import Tensor, nn

from loraloom.models.text.clip import ClipConfig, ClipText

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiffusionRecipe:
    """Sizes and numbers of the diffusion training."""

    widths: tuple[int, int, int, int] = (64, 128, 128, 128)
    text: ClipConfig = ClipConfig(
        vocabulary=49408, positions=77, width=64, layers=3, inner=256, quick_gelu=True
    )
    steps: int = 5000
    batch: int = 32
    rate: float = 1e-3
    warm_up: int = 200
    cool_down: float = 0.3
    """Share of the steps at the end over which the rate falls to zero. Held constant until then, so that the
    number of steps can be changed while the training runs."""
    weight_limit: float = 60.0
    """The most that a step's error counts."""
    average_decay: float = 0.995
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
    """The UNet with fresh weights: Stable Diffusion 1.5's topology."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=recipe.widths,
        cross_attention_dim=recipe.text.width,
        attention_head_dim=8,
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


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
    """mean, deviation: picture × 4 × 16 × 16, as the encoder gives them (before the scale).
    concept, style: of each picture. default: whether its concept has this style when none is named."""

    mean: Tensor
    deviation: Tensor
    concept: list[int]
    style: list[int]
    default: list[bool]


def default_style(left_out: dict[int, int], concept: int) -> int:
    """The style that a concept has when none is named: 3D, or Noto's where 3D is held out."""
    return STYLES.index("noto" if left_out.get(concept) == STYLES.index("3d") else "3d")


def choose_latents(concepts: list[Concept], encoded: Encoded) -> Latents:
    """The training pairs of concept and style, out of all pictures in the order of `autoencoder_pictures`."""
    left_out = held_out(concepts)
    pairs = [(c, s) for c in range(len(concepts)) for s in range(len(STYLES)) if left_out.get(c) != s]
    unasked = {c: default_style(left_out, c) for c, _ in pairs}
    rows = [c * len(STYLES) + s for c, s in pairs]
    return Latents(
        encoded.mean[rows],
        encoded.deviation[rows],
        [c for c, _ in pairs],
        [s for _, s in pairs],
        [unasked[c] == s for c, s in pairs],
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    latent: Tensor
    noise: Tensor
    timestep: Tensor
    tokens: Tensor
    order: Tensor


def _draw(latents: Latents, captioner: Captioner, step: int, recipe: DiffusionRecipe) -> _Sample:
    """The batch of one step: pictures go round in shuffled epochs, everything else is drawn."""
    count = len(latents.concept)
    chosen: list[int] = []
    for at in range(step * recipe.batch, (step + 1) * recipe.batch):
        epoch, place = divmod(at, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed * 7919 + epoch))
        chosen.append(int(order[place]))
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    rows = [
        captioner.draw(latents.concept[i], STYLES[latents.style[i]], latents.default[i], generator)
        for i in chosen
    ]
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
    threads: int,
    compiled: bool,
) -> None:
    """Train to `recipe.steps`, resuming from and saving to `work/diffusion-state.safetensors`.

    text: where the text encoder starts."""
    training = networks(recipe, text)
    unet = torch.compile(training.networks["unet"]) if compiled else training.networks["unet"]
    path = work / "diffusion-state.safetensors"
    first, table = resume(path, training), noise_table()
    weight = step_weights(recipe)
    cores, saved, began, mean_loss = FreeCores(threads), time.monotonic(), time.monotonic(), 0.0
    for step in range(first, recipe.steps):
        if not compiled:  # another count of threads would compile it anew
            cores.follow()
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
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        training.optimizer.step()
        training.optimizer.zero_grad()
        for name, average in training.averages.items():
            follow(average, training.networks[name], min(recipe.average_decay, (step + 1) / (step + 10)))
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
