"""The base model as training needs it: its network, text encoders and autoencoder, frozen, from the same
files and by the same code that inference uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from blake3 import blake3
from torch import nn
from torch.utils.checkpoint import checkpoint

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_autoencoder, open_checkpoint, open_text_encoders
from loraloom.models.encoder import text_blueprint
from loraloom.models.family import NetworkParts
from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders
from loraloom.models.memory import Memory
from loraloom.models.resident import Resident
from loraloom.sampling.types import Network
from loraloom.training.settings import ModelSettings, RunSettings
from loraloom.weights.source import WeightSource

TRAINABLE = ("sd15", "sd20", "sdxl", "flux")
"""Families whose networks predict what the loss knows, and whose text encoders we can feed."""
FINGERPRINT_VALUES = 1024
"""Values of each tensor that identify it in a cache's key: reading ten gigabytes for a key would not pay."""


@dataclass(frozen=True, slots=True)
class Handles:
    """The files of a base model."""

    model: DiffusionModel
    text: TextEncoders
    autoencoder: Autoencoder


def open_model(settings: ModelSettings) -> Handles:
    """Read the headers of the base's files. InputError where a part is missing or cannot be trained."""
    model, text, autoencoder = open_checkpoint(settings.checkpoint)
    if model.family.name not in TRAINABLE:
        raise InputError(
            f"{settings.checkpoint} is {model.family.title}; training knows {', '.join(TRAINABLE)}"
        )
    if settings.text_encoders:
        text = open_text_encoders(settings.text_encoders, settings.text_kind or model.family.text_kind)
    if settings.autoencoder is not None:
        autoencoder = open_autoencoder(settings.autoencoder)
    if text is None:
        raise InputError(f"{settings.checkpoint} holds no text encoder: name one in model.text_encoders")
    if autoencoder is None:
        raise InputError(f"{settings.checkpoint} holds no autoencoder: name one in model.autoencoder")
    return Handles(model, text, autoencoder)


@dataclass(frozen=True, slots=True)
class LiveNetwork:
    """The diffusion network with its module at hand, so that adapters can be put into it."""

    network: Network
    module: nn.Module


def load_network(model: DiffusionModel, settings: RunSettings) -> LiveNetwork:
    """The frozen network, wrapped by its family's own adapter."""
    device = Memory(settings.device, settings.dtype).device
    dtype = torch.bfloat16 if settings.dtype == "bf16" else torch.float32
    blueprint = model.family.blueprint(model.weights.shapes)
    module = Resident(blueprint, model.weights, dtype=dtype, device=device).module
    if settings.checkpointing:
        _recompute(module)
    parametrisation = model.parametrisation or model.family.parametrisation(model.weights)
    parts = NetworkParts(
        module=lambda: module,
        dtype=dtype,
        device=device,
        parametrisation=parametrisation,
        latent=model.latent,
        config=blueprint.config,
    )
    return LiveNetwork(model.family.adapter(parts), module)


def _recompute(module: nn.Module) -> None:
    """Forget activations in the forward pass: block by block, as diffusers does in a UNet. A transformer's
    blocks are called one by one by its family's adapter, so they are wrapped here."""
    blocks = [
        m for name in ("transformer_blocks", "single_transformer_blocks") for m in _children(module, name)
    ]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if not blocks:
        enable: Callable[[], None] = module.enable_gradient_checkpointing  # pyright: ignore[reportAssignmentType]
        enable()


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    found = getattr(module, name, None)
    return list(found) if isinstance(found, nn.ModuleList) else []


@dataclass(frozen=True, slots=True)
class LiveText:
    """Text encoders whose modules stay at hand: what `models.text.encode` needs of a memory, and what
    training needs to put adapters into them."""

    modules: Mapping[str, nn.Module]
    device: torch.device

    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]:
        """Role → module."""
        return {part.role: self.modules[part.role] for part in encoders.parts}


def load_text(text: TextEncoders, settings: RunSettings, roles: tuple[str, ...]) -> LiveText:
    """The text encoders of these roles, frozen, in float32."""
    device = Memory(settings.device, settings.dtype).device
    modules = {
        part.role: Resident(
            text_blueprint(part.role, part.weights.shapes), part.weights, dtype=torch.float32, device=device
        ).module
        for part in text.parts
        if part.role in roles
    }
    return LiveText(modules, device)


def fingerprint(*sources: WeightSource) -> str:
    """What identifies weights in the key of a cache: names, shapes, types and the first values of each."""
    hasher = blake3()
    for source in sources:
        for name in sorted(source.shapes):
            hasher.update(f"{name} {source.shapes[name]} {source.dtypes[name]}".encode())
            values = source.stored(name).flatten()[:FINGERPRINT_VALUES].contiguous()
            hasher.update(values.view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
