"""Pictures during training, by the sampling code that inference uses, on the network as it stands."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from loraloom.atomic_file import write_file
from loraloom.models.autoencoder_network import AutoencoderNetwork
from loraloom.models.residency.memory import Memory
from loraloom.sampling.guidance import CFG
from loraloom.sampling.noise import initial_noise
from loraloom.sampling.run import completed, sample
from loraloom.sampling.samplers.registry import method
from loraloom.sampling.schedules import sigmas_for
from loraloom.training.session import Session
from loraloom.training.settings import Settings


def sample_paths(settings: Settings, step: int) -> tuple[Path, ...]:
    """Where the pictures drawn after `step` steps are: `samples/NAME-STEP-INDEX.png`, one for each prompt;
    none where none are drawn then."""
    due = step % settings.samples.every == 0 or step == settings.run.steps
    folder = settings.output / "samples"
    numbers = range(len(settings.samples.prompts) if due else 0)
    return tuple(folder / f"{settings.name}-{step:06d}-{index:02d}.png" for index in numbers)


def draw_samples(session: Session, step: int) -> tuple[Path, ...]:
    """The pictures of `sample_paths`, where any are due."""
    paths = sample_paths(session.settings, step)
    if not paths:
        return ()
    settings = session.settings.samples
    memory = Memory(session.settings.run.device, "fp32")
    autoencoder = memory.autoencoder(session.handles.autoencoder)
    for index, (prompt, path) in enumerate(zip(settings.prompts, paths, strict=True)):
        picture = _draw(session, autoencoder, prompt, settings.seed + index)
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_file(path, content.getvalue())
    memory.release()
    return paths


@torch.no_grad()
def _draw(session: Session, autoencoder: AutoencoderNetwork, prompt: str, seed: int) -> Image.Image:
    settings, network = session.settings.samples, session.live.network
    side = session.settings.run.resolution
    width, height = settings.width or side, settings.height or side
    scale = autoencoder.downscale
    latent = torch.zeros(1, autoencoder.latent_channels, height // scale, width // scale)
    chosen = method(settings.sampler)
    steps = sample(
        network,
        CFG((session.condition(prompt),), (session.condition(settings.negative),), settings.cfg),
        latent=latent,
        noise=initial_noise(latent, seed),
        method=chosen,
        sigmas=sigmas_for(network.parametrisation, settings.scheduler, settings.steps, method=chosen),
        seed=seed,
    )
    pixels = autoencoder.decode(completed(steps).latent)[0]
    return Image.fromarray((pixels.numpy() * 255.0).round().astype(np.uint8))
