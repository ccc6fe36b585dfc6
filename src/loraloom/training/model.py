"""The base model as training needs it: its network, text encoders and autoencoder, frozen, from the same
files and by the same code that inference uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from blake3 import blake3
from torch import nn
from torch.utils.checkpoint import checkpoint

from loraloom.errors import InputError
from loraloom.models.autoencoder import autoencoder_kinds
from loraloom.models.checkpoint import open_autoencoder, open_checkpoint, open_text_encoders
from loraloom.models.diffusion_network import DiffusionNetwork
from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders
from loraloom.models.recognition import families
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.resident import Resident
from loraloom.sampling.types import Network
from loraloom.training.settings import ModelSettings, RunSettings
from loraloom.weights.source import WeightSource

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
    if model.family.training is None:
        known = ", ".join(family.title for family in families() if family.training)
        raise InputError(f"{settings.checkpoint} is {model.family.title}; training knows {known}")
    if settings.text_encoders:
        recipe = model.family.recipe(model.weights.shapes)
        text = open_text_encoders(settings.text_encoders, settings.text_kind or recipe.name)
    if settings.autoencoder is not None:
        autoencoder = open_autoencoder(settings.autoencoder)
    if text is None:
        raise InputError(f"{settings.checkpoint} holds no text encoder: name one in model.text_encoders")
    if autoencoder is None:
        raise InputError(f"{settings.checkpoint} holds no autoencoder: name one in model.autoencoder")
    _require_own(autoencoder, model)
    return Handles(model, text, autoencoder)


def _require_own(autoencoder: Autoencoder, model: DiffusionModel) -> None:
    latent, kind = model.latent, autoencoder.kind
    if (kind.name, autoencoder.latent_channels) != (latent.autoencoder, latent.channels):
        wanted = autoencoder_kinds()[latent.autoencoder]
        raise InputError(
            f"the autoencoder ({kind.title}, latents of {autoencoder.latent_channels} channels) is another "
            f"model family's: {model.family.title} wants a {wanted.title} with {latent.channels} channels. "
            "Name its own in model.autoencoder"
        )


@dataclass(frozen=True, slots=True)
class LiveNetwork:
    """The diffusion network with its module at hand, so that adapters can be put into it."""

    network: Network
    module: nn.Module


def load_network(model: DiffusionModel, settings: RunSettings) -> LiveNetwork:
    """The frozen network, wrapped by its family's own adapter."""
    device = Memory(settings.device, settings.dtype).device
    dtype = torch.bfloat16 if settings.dtype == "bf16" else torch.float32
    blueprint = model.blueprint
    module = Resident(blueprint, model.weights, dtype=dtype, device=device).module
    if settings.checkpointing:
        _recompute(module, model.family.blocks.values())
    network = DiffusionNetwork(
        family=model.family,
        module=lambda: module,
        config=blueprint.config,
        parametrisation=model.current_parametrisation(),
        dtype=dtype,
        device=device,
        recipe=model.family.recipe(model.weights.shapes),
    )
    return LiveNetwork(network, module)


def _recompute(module: nn.Module, groups: Iterable[str]) -> None:
    """Forget activations in the forward pass, block by block: by diffusers' own switch in a UNet, elsewhere
    for the blocks in the module's lists of these names."""
    blocks = [block for name in groups for block in getattr(module, name)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if not blocks:
        enable: Callable[[], None] = module.enable_gradient_checkpointing  # pyright: ignore[reportAssignmentType]
        enable()


@dataclass(frozen=True, slots=True)
class LiveText:
    """Text encoders whose modules stay at hand: what `models.text.encode` needs of a memory, and what
    training needs to put adapters into them."""

    modules: Mapping[str, nn.Module]
    device: torch.device

    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]:
        """Role → module."""
        return {part.role: self.modules[part.role] for part in encoders.parts}

    def reserve_text(self, encoders: TextEncoders, role: str, numbers: int) -> None:
        """Nothing leaves."""

    def text_gives_way(self, encoders: TextEncoders) -> bool:
        """Nothing leaves."""
        return False


def load_text(text: TextEncoders, settings: RunSettings, roles: tuple[str, ...]) -> LiveText:
    """The text encoders of these roles, frozen, in float32."""
    device = Memory(settings.device, settings.dtype).device
    modules = {
        part.role: Resident(part.blueprint, part.weights, dtype=torch.float32, device=device).module
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
