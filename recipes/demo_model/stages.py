"""The stages of the demo model's making: what each needs of those before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import autoencoder
import colours
import dataset
import decoder
import diffusion
import export
import text
from autoencoder import AutoencoderRecipe, Encoded
from captions import Captioner
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusion import DiffusionRecipe
from loop import Machine

SHARED = ("autoencoder", "diffusion", "decoder")
"""Stages that several processes work on together."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of the recipe: work folder, machine, numbers."""

    work: Path
    machine: Machine = field(default_factory=Machine)
    vae: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    recipe: DiffusionRecipe = field(default_factory=DiffusionRecipe)


def train_autoencoder(run: Run) -> None:
    """Pictures → `autoencoder-state.safetensors`."""
    pictures = dataset.autoencoder_pictures(dataset.load(run.work))
    autoencoder.train(pictures, run.work, run.vae, run.machine)


def encode_pictures(run: Run) -> None:
    """The trained autoencoder → `autoencoder.safetensors`, normalised, and `latents.safetensors`; sheets."""
    artworks = dataset.load(run.work)
    pictures = dataset.autoencoder_pictures(artworks)
    known = len(dataset.training_pairs(artworks.concepts))
    vae = autoencoder.finish(pictures.seen[:known], run.work, run.vae, run.machine)
    autoencoder.encode(vae, pictures.seen, run.work, run.machine)


def train_text(run: Run) -> None:
    """Latents → `text.safetensors`."""
    concepts = dataset.load(run.work).concepts
    latents = diffusion.choose_latents(concepts, _encoded(run)[1])
    text.train(latents, Captioner(concepts), run.work, run.recipe, run.machine.device)


def train_diffusion(run: Run) -> None:
    """Latents and text encoder → `diffusion-state.safetensors`."""
    concepts = dataset.load(run.work).concepts
    latents = diffusion.choose_latents(concepts, _encoded(run)[1])
    begin = text.trained(run.work, run.recipe)
    diffusion.train(latents, Captioner(concepts), begin, run.work, run.recipe, run.machine)


def train_decoder(run: Run) -> None:
    """Latents and pictures → `decoder-state.safetensors`."""
    pictures = dataset.autoencoder_pictures(dataset.load(run.work))
    vae, encoded = _encoded(run)
    decoder.train(vae, encoded.mean, pictures, run.work, run.vae, run.machine)


def export_checkpoint(run: Run) -> None:
    """Everything → `loraloom-demo.safetensors`."""
    unet, encoder = diffusion.load_averages(run.work, run.recipe)
    told = {f"loraloom.recipe.{name}": str(value) for name, value in asdict(run.recipe).items()}
    vae, encoded = _encoded(run)
    made = decoder.refined(vae, run.work, run.vae)
    told |= colours.stated(colours.fitted(made, encoded.mean[:64]))
    export.export(run.work / "loraloom-demo.safetensors", unet, encoder, made, told)


def _encoded(run: Run) -> tuple[AutoencoderKL, Encoded]:
    return autoencoder.finished(run.work, run.vae), autoencoder.latents(run.work)


ALL: dict[str, Callable[[Run], None]] = {
    "autoencoder": train_autoencoder,
    "latents": encode_pictures,
    "text": train_text,
    "diffusion": train_diffusion,
    "decoder": train_decoder,
    "export": export_checkpoint,
}
