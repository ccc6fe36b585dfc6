"""MODEL, CLIP and VAE as nodes pass them on: small, immutable, hashable; nothing is loaded to make one.

`models.residency.memory.Memory` turns a handle into what computes. Two equal handles are the same model.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from loraloom.models.autoencoder import AutoencoderKind
from loraloom.models.encoder import encoder_kind
from loraloom.models.family import Blueprint, Family
from loraloom.models.latent_format import LatentFormat
from loraloom.models.parts.lora_names import text_aliases
from loraloom.sampling.types import Parametrisation
from loraloom.weights.patch import NameTable, PatchUse, Stack
from loraloom.weights.source import WeightSource

if TYPE_CHECKING:
    from loraloom.models.text.embeddings import BundledEmbeddings

Options: TypeAlias = "tuple[tuple[str, Hashable], ...]"
"""What nodes attach to a handle, by name, sorted: "weight_dtype", "cfg_rescale" …"""


KEEPS_REFERENCES = "keeps_references"
"""The option of a model whose later steps go on from what its run's first one made of reference pictures."""


def _with_option(options: Options, name: str, value: Hashable) -> Options:
    kept = [(known, old) for known, old in options if known != name]
    return tuple(sorted([*kept, (name, value)], key=lambda option: option[0]))


def _option(options: Options, name: str, default: Hashable) -> Hashable:
    return next((value for known, value in options if known == name), default)


@dataclass(frozen=True, slots=True)
class DiffusionModel:
    """A diffusion network with its LoRA stack.

    parametrisation: hashable, set by nodes that change it; None: the family's own for these weights.
    """

    family: Family
    weights: WeightSource
    stack: Stack = ()
    parametrisation: Parametrisation | None = None
    options: Options = ()

    @property
    def blueprint(self) -> Blueprint:
        return self.weights.worked_out(self.family.blueprint)

    @property
    def latent(self) -> LatentFormat:
        return self.family.latents

    def current_parametrisation(self) -> Parametrisation:
        """The one set by nodes, or the family's own for these weights."""
        return self.parametrisation or self.family.prediction(self.weights)

    def with_lora(self, use: PatchUse) -> DiffusionModel:
        return replace(self, stack=(*self.stack, use))

    def with_parametrisation(self, parametrisation: Parametrisation) -> DiffusionModel:
        return replace(self, parametrisation=parametrisation)

    def with_option(self, name: str, value: Hashable) -> DiffusionModel:
        return replace(self, options=_with_option(self.options, name, value))

    def option(self, name: str, default: Hashable = None) -> Hashable:
        return _option(self.options, name, default)

    def lora_aliases(self) -> NameTable:
        """Module paths in diffusers → where they go."""
        return self.family.lora_aliases(self.weights.shapes)


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text encoder. role: its kind, which native names begin with: "clip_l.transformer.text_model.…"."""

    role: str
    weights: WeightSource

    @property
    def blueprint(self) -> Blueprint:
        return self.weights.worked_out(encoder_kind(self.role).network)


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """The text encoders of a model with their LoRA stack.

    kind: the name of the recipe that they are used by ("sd15", "flux", "z_image" …).
    clip_skip: ComfyUI's stop_at_clip_layer (-1 is the last layer); None: the kind's own.
    embeddings: textual inversions that LoRAs brought along.
    """

    kind: str
    parts: tuple[TextPart, ...]
    stack: Stack = ()
    clip_skip: int | None = None
    options: Options = ()
    embeddings: tuple[BundledEmbeddings, ...] = ()

    def part(self, role: str) -> TextPart | None:
        return next((part for part in self.parts if part.role == role), None)

    def with_lora(self, use: PatchUse) -> TextEncoders:
        return replace(self, stack=(*self.stack, use))

    def with_embeddings(self, bundle: BundledEmbeddings) -> TextEncoders:
        return replace(self, embeddings=(*self.embeddings, bundle))

    def with_clip_skip(self, clip_skip: int) -> TextEncoders:
        return replace(self, clip_skip=clip_skip)

    def with_option(self, name: str, value: Hashable) -> TextEncoders:
        return replace(self, options=_with_option(self.options, name, value))

    def option(self, name: str, default: Hashable = None) -> Hashable:
        return _option(self.options, name, default)

    def lora_aliases(self) -> NameTable:
        """Module paths, "ROLE." and Hugging Face's name, → where they go."""
        return text_aliases({part.role: part.weights.shapes for part in self.parts})


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """An image autoencoder: pixels ↔ latents as LATENT sockets carry them (before `LatentFormat`)."""

    kind: AutoencoderKind
    weights: WeightSource
    options: Options = ()

    @property
    def blueprint(self) -> Blueprint:
        return self.weights.worked_out(self.kind.blueprint)

    @property
    def latent_channels(self) -> int:
        return self.kind.latent_channels(self.kind.module.config(self.weights.shapes))

    def with_option(self, name: str, value: Hashable) -> Autoencoder:
        return replace(self, options=_with_option(self.options, name, value))

    def option(self, name: str, default: Hashable = None) -> Hashable:
        return _option(self.options, name, default)
