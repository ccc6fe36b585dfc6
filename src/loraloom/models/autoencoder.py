"""What Loraloom knows of a kind of autoencoder, as data; the folder `autoencoders/` is the registry.

A file autoencoders/NAME.py ends in AUTOENCODER. Importing one never imports torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import loraloom.models.autoencoders as autoencoders_package
from loraloom.models.known_model import Config, KnownModel, most_specific
from loraloom.models.known_model import number as number
from loraloom.models.names import Regrouping, Shapes
from loraloom.models.recognition import native_shapes
from loraloom.weights.header import Header

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = ("first_stage_model.", "vae.", "")
"""What files put before the names of an autoencoder."""


def decode(module: Any, latent: Tensor) -> Tensor:
    """(1, C, h, w) → (1, channels, H, W), about [-1, 1]; of frames, (1, C, F, h, w), the first."""
    return module.decode(first_frame(latent), return_dict=False)[0]


def first_frame(latent: Tensor) -> Tensor:
    return latent if latent.dim() == 4 else latent[:, :, 0]


def encode(module: Any, pixels: Tensor) -> Tensor:
    """(1, channels, H, W) in [-1, 1] → (1, C, h, w): the mean of the posterior, nothing drawn."""
    return module.encode(pixels, return_dict=False)[0].mode()


def frame_decode(module: Any, latent: Tensor) -> Tensor:
    """As `decode`, for modules of films: a picture is one frame."""
    frames = latent if latent.dim() == 5 else latent[:, :, None]
    return module.decode(frames, return_dict=False)[0].movedim(2, 1).flatten(0, 1)


def frame_encode(module: Any, pixels: Tensor) -> Tensor:
    return encode(module, pixels[:, :, None])[:, :, 0]


@dataclass(frozen=True, eq=False, kw_only=True)
class AutoencoderKind(KnownModel):
    """A kind of image autoencoder: pixels ↔ latents as LATENT sockets carry them (before `LatentFormat`).

    latent_channels: of the latents, from the configuration. pixels: of a picture, in both directions, that a
        latent pixel stands for.
    channels: of its pictures: 3, or 4 with an opacity. framed: see `LatentFormat`.
    width: of the maps at the picture's own size, from the configuration.
    decode, encode: the call, on the module.
    """

    latent_channels: Callable[[Config], int]
    pixels: Callable[[Config], int]
    width: Callable[[Config], int]
    channels: int = 3
    framed: bool = False
    decode: Callable[[Any, Tensor], Tensor] = decode
    encode: Callable[[Any, Tensor], Tensor] = encode


def halvings(name: str) -> Callable[[Config], int]:
    """Pixels of a latent pixel, where each level but the last of a list in the configuration halves sides."""
    return lambda config: 2 ** (len(cast("tuple[int, ...]", config[name])) - 1)


@cache
def autoencoder_kinds() -> Mapping[str, AutoencoderKind]:
    """Every kind by name: one per file of `models/autoencoders`."""
    found: dict[str, AutoencoderKind] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(autoencoders_package.__path__)):
        kind: AutoencoderKind = importlib.import_module(
            f"{autoencoders_package.__name__}.{module}"
        ).AUTOENCODER
        if kind.name in found:
            raise ValueError(f"two autoencoders are called {kind.name!r}; one is in autoencoders/{module}.py")
        found[kind.name] = kind
    return MappingProxyType(found)


@dataclass(frozen=True, slots=True)
class FoundAutoencoder:
    """An autoencoder within a file: its kind, the prefix of its names, and how the file's tensors (without
    the prefix) make up its native weights."""

    kind: AutoencoderKind
    prefix: str
    pieces: Regrouping


def find_autoencoder(header: Header) -> FoundAutoencoder | None:
    """The autoencoder that a file holds, in its own or in its module's layout; what other code trained beside
    it is left out."""
    for prefix in PREFIXES:
        shapes = native_shapes(header, prefix)
        known = autoencoder_kinds().values()
        if fitting := most_specific(kind for kind in known if kind.matches(shapes)):
            kind = fitting[0]
            names = kind.names.of_native(shapes)
            own = {name: ((name, None),) for name in shapes if names.knows(name)}
            return FoundAutoencoder(kind, prefix, own)
        made_up = {kind: found for kind in known if (found := kind.regrouped(shapes))}
        if fitting := most_specific(made_up):
            kind = fitting[0]
            return FoundAutoencoder(kind, prefix, _known_only(kind, *made_up[kind]))
    return None


def _known_only(kind: AutoencoderKind, shapes: Shapes, regrouping: Regrouping) -> Regrouping:
    names = kind.names.of_native(shapes)
    return {native: pieces for native, pieces in regrouping.items() if names.knows(native)}
