"""The demo's autoencoder: SD1.5 topology with narrow widths, trained on crops, then on whole pictures."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from state import Training, follow, read_tensors, resume, save, write_tensors
from threads import FreeCores
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)

SCALE = 0.18215
"""What SD1.5 multiplies latents with; the finished weights give latents of unit deviation after it."""


FIRST_LOG_VARIANCE = -5.0


@dataclass(frozen=True, slots=True)
class AutoencoderRecipe:
    """Sizes and numbers of the autoencoder's training; chosen for two CPU cores and half an hour."""

    widths: tuple[int, int, int, int] = (64, 64, 64, 64)
    """Not 32 anywhere: 32 norm groups of one channel each would take away how bright a picture is."""
    crop_steps: int = 760
    """Steps on 64×64 crops: a quarter of the cost of a picture and four times the variety."""
    whole_steps: int = 40
    """Steps on whole pictures, so that the attention in the middle meets its final length."""
    decoder_steps: int = 5000
    """Steps of the decoder alone, once the latents stand and the diffusion trains on them."""
    latent_noise: float = 0.08
    """Deviation of the noise on latents that the decoder alone is trained with: samples are not exact."""
    crop_batch: int = 4
    whole_batch: int = 1
    rate: float = 2e-3
    kl_weight: float = 4e-5
    """Per latent value; leaves noise of some hundredths of the latents' deviation. Ten times as much
    leaves a channel unused."""
    colour_steps: int = 500
    """Steps over which the first three channels are drawn towards the mean colours of their 8×8 pixels, ever
    more weakly: without it the first thousand steps are grey."""
    colour_floor: float = 0.01
    """The weight of that pull afterwards: latents that look like pictures are easier to denoise."""
    edge_weight: float = 0.5
    average_decay: float = 0.996
    seed: int = 6


def build(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The network with fresh weights; the encoder starts almost without noise, or it would learn late."""
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=recipe.widths,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=128,
        scaling_factor=SCALE,
    )
    with torch.no_grad():
        network.quant_conv.weight[4:] *= 0.1
        network.quant_conv.bias[4:] = FIRST_LOG_VARIANCE
    return network


def _edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    return picture.diff(dim=-1), picture.diff(dim=-2)


def reconstruction_loss(output: Tensor, target: Tensor, edge_weight: float) -> Tensor:
    """L1 of the values, of mean colours of squares, and of differences between neighbours (sharp lines)."""
    loss = F.l1_loss(output, target)
    for factor in (4, 8):
        loss = loss + F.l1_loss(F.avg_pool2d(output, factor), F.avg_pool2d(target, factor))
    for factor in (1, 2):
        ours = F.avg_pool2d(output, factor) if factor > 1 else output
        theirs = F.avg_pool2d(target, factor) if factor > 1 else target
        for ours_edge, their_edge in zip(_edges(ours), _edges(theirs), strict=True):
            loss = loss + edge_weight * F.l1_loss(ours_edge, their_edge)
    return loss


def _batch(
    pictures: Tensor, weights: Tensor, step: int, recipe: AutoencoderRecipe
) -> tuple[Tensor, torch.Generator]:
    """Pictures (or crops) of step `step` in -1…1; depends on nothing but the step and the seed."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    crop = step < recipe.crop_steps
    count = recipe.crop_batch if crop else recipe.whole_batch
    chosen = pictures[torch.multinomial(weights, count, replacement=True, generator=generator)]
    if crop:
        corners = torch.randint(0, 65, (count, 2), generator=generator).tolist()
        chosen = torch.stack(
            [p[:, y : y + 64, x : x + 64] for p, (y, x) in zip(chosen, corners, strict=True)]
        )
    if torch.rand((), generator=generator) < 0.5:
        chosen = chosen.flip(-1)
    return chosen.float() / 127.5 - 1.0, generator


def train(
    pictures: Tensor, weights: Tensor, work: Path, recipe: AutoencoderRecipe, save_every: float, threads: int
) -> None:
    """Train to the end, resuming from and saving to `work/autoencoder-state.safetensors`.

    `pictures`: uint8, N×3×128×128; `weights`: how often each is chosen, relative to the others.
    """
    torch.manual_seed(recipe.seed)
    network = build(recipe)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    training = Training({"vae": network}, {"vae": average}, optimizer)
    path = work / "autoencoder-state.safetensors"
    first, total = resume(path, training), recipe.crop_steps + recipe.whole_steps
    saved, began = time.monotonic(), time.monotonic()
    cores = FreeCores(threads)
    for step in range(first, total):
        cores.follow()
        progress = step / total
        rate = (
            recipe.rate
            * min(1.0, (step + 1) / 100)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        optimizer.param_groups[0]["lr"] = rate
        batch, generator = _batch(pictures, weights, step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            moments = network.encode(batch).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())
        with torch.autocast("cpu", torch.bfloat16):
            output = network.decode(posterior.sample(generator)).sample
        fit = reconstruction_loss(output.float(), batch, recipe.edge_weight)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        pull = max(recipe.colour_floor, 1.0 - step / recipe.colour_steps)
        colour = F.mse_loss(posterior.mean[:, :3], 2.0 * F.avg_pool2d(batch, 8))
        (fit + recipe.kl_weight * divergence + pull * colour).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, network, min(recipe.average_decay, (step + 1) / (step + 10)))
        if step % 50 == 0:
            pace = (time.monotonic() - began) / (step - first + 1)
            log.info(
                "vae %d/%d fit %.4f kl %.3f %.2f s/step", step, total, fit.item(), divergence.item(), pace
            )
        if time.monotonic() - saved > save_every or step + 1 == total:
            save(path, training, step + 1)
            saved = time.monotonic()


def load_average(work: Path, recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The averaged weights of the training so far."""
    tensors, _ = read_tensors(work / "autoencoder-state.safetensors")
    network = build(recipe)
    prefix = "average/vae/"
    network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def normalise(network: AutoencoderKL, pictures: Tensor) -> None:
    """Make latents times `SCALE` have mean 0 and deviation 1, through the 1×1 convolutions beside them.

    Exact: the decoder's side gets the inverse map. The format's factor is fixed, so the weights must suit it.
    """
    means = torch.cat([network.encode(p.float() / 127.5 - 1.0).latent_dist.mean for p in pictures.split(32)])
    centre = means.mean((0, 2, 3))
    spread = means.std((0, 2, 3)) * SCALE
    before, after = network.quant_conv, network.post_quant_conv
    before.weight[:4] /= spread[:, None, None, None]
    before.bias[:4] = (before.bias[:4] - centre) / spread
    before.bias[4:] -= 2.0 * spread.log()
    after.bias += (after.weight[:, :, 0, 0] * centre).sum(1)
    after.weight *= spread[None, :, None, None]


@dataclass(frozen=True, slots=True)
class Encoded:
    """mean, deviation: picture × 4 × 16 × 16, as the encoder gives them (before the scale)."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def encode(network: AutoencoderKL, pictures: Tensor, work: Path) -> Encoded:
    """The latents of all pictures, computed once; kept in `work/latents.safetensors`."""
    path = work / "latents.safetensors"
    if not path.exists():
        parts = []
        for number, part in enumerate(pictures.split(8)):
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(network.encode(part.float() / 127.5 - 1.0).latent_dist.parameters.float())
            if number % 10 == 0:
                log.info("encoded %d of %d", 8 * number, len(pictures))
        found = DiagonalGaussianDistribution(torch.cat(parts))
        write_tensors(path, {"mean": found.mean.contiguous(), "deviation": found.std.contiguous()}, {})
    tensors, _ = read_tensors(path)
    return Encoded(tensors["mean"], tensors["deviation"])


def finish(pictures: Tensor, work: Path, recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The normalised autoencoder; kept in `work/autoencoder.safetensors`."""
    path = work / "autoencoder.safetensors"
    if path.exists():
        network = build(recipe)
        network.load_state_dict(read_tensors(path)[0])
        return network.eval().requires_grad_(False)
    network = load_average(work, recipe)
    normalise(network, pictures)
    write_tensors(path, network.state_dict(), {})
    return network
