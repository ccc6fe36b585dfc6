"""The demo's autoencoder: SD1.5 topology with narrow widths, trained on whole pictures.

Not on crops: the norms at the ends of both halves take their statistics from the whole, and a picture on
white has others than its middle. What was trained on crops gave pale pictures.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import loop
import torch
from dataset import Pictures
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from identity import begin_as_identity, carry_offsets
from loop import Machine, Task
from pictures import SIDE
from state import Training, read_tensors, write_tensors
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

SCALE = 0.18215
"""What SD1.5 multiplies latents with; the finished weights give latents of unit deviation after it."""
LOG_VARIANCE = -6.0
"""Of the latents, whose values are about as large as 1. Fixed: left to learn it, the encoder lets noise in
before the decoder can use anything finer, and then it stays, with a channel unused."""
STATE, FINISHED, LATENTS = "autoencoder-state.safetensors", "autoencoder.safetensors", "latents.safetensors"


@dataclass(frozen=True, slots=True)
class AutoencoderRecipe:
    """Sizes and numbers of the autoencoder's training; chosen for some minutes of a large GPU."""

    widths: tuple[int, int, int, int] = (64, 64, 128, 192)
    """Not 32 anywhere: 32 norm groups of one channel each would take away how bright a picture is. Wide only
    where there are few pixels: most of the time goes into the two levels of 64."""
    steps: int = 7700
    batch: int = 16
    """Pictures a step, in each process."""
    rate: float = 8e-4
    kl_weight: float = 4e-5
    """Per latent value: keeps the latents' values from growing beyond the noise."""
    pull_steps: int = 200
    """Steps over which the latents are drawn towards colours and contrast of their 8×8 pixels (`coarse`),
    ever more weakly: without it the first thousand steps are grey, and a channel may stay unused."""
    pull_floor: float = 0.002
    """The weight of that pull afterwards: latents that look like pictures are easier to denoise."""
    decoder_steps: int = 7330
    """Steps of the decoder alone, once the latents stand and the diffusion trains on them."""
    latent_noise: float = 0.06
    """Deviation of the noise on latents that the decoder alone is trained with: samples are not exact."""
    feature_weight: float = 0.1
    critic_weight: float = 0.01
    critic_from: float = 0.6
    """Share of the decoder's steps after which the critic's verdicts count."""
    edge_weight: float = 0.5
    average_decay: float = 0.999
    seed: int = 6


def build(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The network with fresh weights and latents of fixed variance."""
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=recipe.widths,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=SIDE,
        scaling_factor=SCALE,
    )
    begin_as_identity(network)
    carry_offsets(network)
    fix_variance(network)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def fix_variance(network: AutoencoderKL) -> None:
    """Let the encoder say `LOG_VARIANCE` everywhere."""
    network.quant_conv.weight[4:] = 0.0
    network.quant_conv.bias[4:] = LOG_VARIANCE


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


class Draws:
    """Pictures by their weights, on a device."""

    def __init__(self, pictures: Pictures, device: torch.device) -> None:
        self._bounds = (pictures.weights.double().cumsum(0) / pictures.weights.double().sum()).to(device)
        self.pictures = pictures.seen.to(device)

    def choose(self, count: int) -> Tensor:
        """Numbers (count) of pictures."""
        chances = torch.rand(count, dtype=torch.float64, device=self._bounds.device)
        return torch.searchsorted(self._bounds, chances).clamp(max=len(self._bounds) - 1)


def values(pictures: Tensor) -> Tensor:
    """uint8 → -1…1."""
    return (pictures.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _batch(draws: Draws, count: int) -> tuple[Tensor, Tensor]:
    """Pictures in -1…1, half of them mirrored, and noise for their latents."""
    chosen = draws.pictures[draws.choose(count)]
    mirrored = torch.rand(count, 1, 1, 1, device=chosen.device) < 0.5
    noise = torch.randn(count, 4, SIDE // 8, SIDE // 8, device=chosen.device)
    return values(torch.where(mirrored, chosen.flip(-1), chosen)), noise


def coarse(batch: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 4, H/8, W/8): twice the mean colours of 8×8 pixels, and how uneven their grey is."""
    colours = F.avg_pool2d(batch, 8)
    grey = batch.mean(1, keepdim=True)
    uneven = F.avg_pool2d((grey - F.interpolate(colours.mean(1, keepdim=True), scale_factor=8)).abs(), 8)
    return torch.cat([2.0 * colours, 8.0 * uneven - 1.0], 1)


class Objective(nn.Module):
    """A picture through the autoencoder and back, and what is wrong with it."""

    def __init__(self, network: AutoencoderKL, recipe: AutoencoderRecipe) -> None:
        super().__init__()
        self.network, self._recipe = network, recipe

    def forward(self, batch: Tensor, noise: Tensor, pull: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """batch (B, 3, H, W), noise (B, 4, H/8, W/8) → loss, the picture's part of it, KL divergence."""
        network, recipe = self.network, self._recipe
        mean, log_variance = network.quant_conv(network.encoder(batch)).float().chunk(2, 1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        latent = mean + (0.5 * log_variance).exp() * noise
        output = network.decoder(network.post_quant_conv(latent)).float()
        fit = reconstruction_loss(output, batch, recipe.edge_weight)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        likeness = F.mse_loss(mean, coarse(batch))
        return fit + recipe.kl_weight * divergence + pull * likeness, fit, divergence


def falling_rate(step: int, total: int, warm_up: int) -> float:
    """The share of the full rate at `step`: a short rise, then a cosine down to a fiftieth."""
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / total)))


def train(pictures: Pictures, work: Path, recipe: AutoencoderRecipe, machine: Machine) -> None:
    """Train to the end, resuming from and saving to `work/autoencoder-state.safetensors`."""
    torch.manual_seed(recipe.seed)
    network = build(recipe).to(machine.device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    objective = machine.compile(Objective(network, recipe))
    draws = Draws(pictures, machine.device)

    def passes(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch, noise = _batch(draws, recipe.batch)
        with machine.autocast():
            loss, fit, divergence = objective(batch, noise, numbers["pull"])
        loss.backward()
        return {"fit": fit, "kl": divergence}

    def numbers(step: int, total: int) -> dict[str, float]:
        pull = max(recipe.pull_floor, 0.5 * (1.0 - step / recipe.pull_steps))
        return {"rate": recipe.rate * falling_rate(step, total, 100), "pull": pull}

    task = Task(
        name="autoencoder",
        training=Training({"vae": network}, {"vae": average}, optimizer),
        path=work / STATE,
        steps=recipe.steps,
        seed=recipe.seed,
        decay=recipe.average_decay,
        numbers=numbers,
        passes=passes,
        settle=lambda: fix_variance(network),
        judge=lambda: f"PSNR {quality(average, pictures.judged)}",
    )
    loop.run(task, machine)


@torch.no_grad()
def through(network: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures (uint8, N×3×H×W) through the autoencoder and back, without noise."""
    device = next(network.parameters()).device
    made: list[Tensor] = []
    for part in pictures.split(2):
        with torch.autocast(device.type, torch.bfloat16):
            latent = network.encode(values(part.to(device))).latent_dist.mean
            made.append(network.decode(latent).sample.float().cpu())
    return ((torch.cat(made) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def psnr(ours: Tensor, theirs: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of N uint8 pictures, in dB."""
    errors = (ours.float() - theirs.float()).square().flatten(1).mean(1)
    return 10.0 * (255.0**2 / errors.clamp(min=1e-3)).log10()


def quality(network: AutoencoderKL, judged: dict[str, Tensor]) -> str:
    """Mean PSNR of every kind of pictures, as words."""
    return ", ".join(
        f"{name} {psnr(through(network, pictures), pictures).mean().item():.2f} dB"
        for name, pictures in judged.items()
    )


def load_average(work: Path, recipe: AutoencoderRecipe) -> AutoencoderKL:
    """The averaged weights of the training so far."""
    tensors, _ = read_tensors(work / STATE)
    network = build(recipe)
    prefix = "average/vae/"
    network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def normalise(network: AutoencoderKL, pictures: Tensor) -> None:
    """Make latents times `SCALE` have mean 0 and deviation 1, through the 1×1 convolutions beside them.

    Exact: the decoder's side gets the inverse map. The format's factor is fixed, so the weights must suit it.
    """
    device = next(network.parameters()).device
    means = torch.cat([network.encode(values(p.to(device))).latent_dist.mean for p in pictures.split(8)])
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
    """mean, deviation: picture × 4 × 24 × 24, as the encoder gives them (before the scale)."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def encode(network: AutoencoderKL, pictures: Tensor, work: Path, machine: Machine) -> None:
    """The latents of all pictures, computed once; kept in `work/latents.safetensors`."""
    path = work / LATENTS
    if path.exists():
        return
    network.to(machine.device)
    parts: list[Tensor] = []
    for number, part in enumerate(pictures.split(8)):
        with machine.autocast():
            encoded = network.encode(values(part.to(machine.device))).latent_dist
        parts.append(encoded.parameters.float().cpu())
        if number % 20 == 0:
            log.info("encoded %d of %d", 8 * number, len(pictures))
    found = DiagonalGaussianDistribution(torch.cat(parts))
    write_tensors(path, {"mean": found.mean.contiguous(), "deviation": found.std.contiguous()}, {})


def latents(work: Path) -> Encoded:
    """What `encode` wrote."""
    tensors, _ = read_tensors(work / LATENTS)
    return Encoded(tensors["mean"], tensors["deviation"])


def finish(pictures: Tensor, work: Path, recipe: AutoencoderRecipe, machine: Machine) -> AutoencoderKL:
    """The normalised autoencoder; kept in `work/autoencoder.safetensors`."""
    if not (work / FINISHED).exists():
        network = load_average(work, recipe).to(machine.device)
        normalise(network, pictures)
        state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
        write_tensors(work / FINISHED, state, {})
    return finished(work, recipe)


def finished(work: Path, recipe: AutoencoderRecipe) -> AutoencoderKL:
    """What `finish` wrote."""
    network = build(recipe)
    network.load_state_dict(read_tensors(work / FINISHED)[0])
    return network.eval().requires_grad_(False)
