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


def draw_samples(session: Session, step: int) -> tuple[Path, ...]:
    """One picture per prompt of the settings, as `samples/NAME-STEP-INDEX.png`; their paths."""
    settings = session.settings.samples
    memory = Memory(session.settings.run.device, "fp32")
    autoencoder = memory.autoencoder(session.handles.autoencoder)
    folder = session.settings.output / "samples"
    paths: list[Path] = []
    for index, prompt in enumerate(settings.prompts):
        picture = _draw(session, autoencoder, prompt, settings.seed + index)
        path = folder / f"{session.settings.name}-{step:06d}-{index:02d}.png"
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_file(path, content.getvalue())
        paths.append(path)
    memory.release()
    return tuple(paths)


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
