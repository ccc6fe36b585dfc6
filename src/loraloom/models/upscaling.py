"""Upscale models (ESRGAN and its successors), recognised and built by spandrel from their weights alone."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.models.tiles import in_tiles
from loraloom.weights.capacity import available_memory, is_allocation_failure
from loraloom.weights.tensor_file import TensorFile

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

TILE, SMALLEST_TILE, OVERLAP = 512, 128, 32
MAPS = 3
"""Maps of the enlarged tile that a network holds at once: what a convolution reads, writes and activates."""


class Upscaler:
    """A network from pictures (1, 3, H, W) to pictures `scale` times as large."""

    def __init__(self, network: ImageModelDescriptor[Any], name: str) -> None:
        self._network = network
        self.name = name
        self.scale = network.scale

    @torch.inference_mode()
    def __call__(self, image: Tensor, device: torch.device) -> Tensor:
        """(B, H, W, 3) in [0, 1] → (B, scale · H, scale · W, 3), in tiles, small ones where memory is short.

        Raises what the allocator raises when the smallest do not fit either."""
        self._network.to(device).eval()
        tile = TILE
        while tile > SMALLEST_TILE and self._bytes(tile) > available_memory(device):
            tile //= 2
        while True:
            try:
                upscaled = in_tiles(
                    self._one, image.movedim(-1, 1).to(device), (tile, tile), OVERLAP, self.scale
                )
                return upscaled.movedim(1, -1).clamp(0, 1).float().cpu()
            except (RuntimeError, MemoryError) as error:
                if tile <= SMALLEST_TILE or not is_allocation_failure(error):
                    raise
            tile //= 2

    def _bytes(self, tile: int) -> int:
        """What one tile takes: a few maps of its enlarged size, as wide as the widest convolution."""
        parameters = list(self._network.model.parameters())
        width = max((p.shape[0] for p in parameters if p.ndim == 4), default=1)
        return MAPS * (tile * self.scale) ** 2 * width * self._network.dtype.itemsize

    def _one(self, tile: Tensor) -> Tensor:
        return self._network(tile.to(self._network.dtype)).float()


def open_upscaler(path: Path) -> Upscaler:
    """An upscale model from a safetensors file. Raises ModelFileError when it is none that is known."""
    file = TensorFile(path)
    weights = {name: file.read(name) for name in file.header.tensors}
    with _without_torchvision():
        try:
            from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
        except ImportError as error:
            raise InputError(
                f"upscale models need the package spandrel: pip install --no-deps spandrel einops ({error})"
            ) from None
    try:
        found = ModelLoader().load_from_state_dict(weights)
    except UnsupportedModelError:
        raise ModelFileError(f"{path}: no upscale model of a known kind") from None
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise ModelFileError(f"{path}: the weights do not make up an upscale model: {error}") from error
    if not isinstance(found, ImageModelDescriptor) or found.input_channels != 3:
        raise ModelFileError(
            f"{path}: a {found.architecture.name} model, which does not upscale colour pictures"
        )
    return Upscaler(found, path.name)


@contextmanager
def _without_torchvision() -> Generator[None]:
    """Let spandrel be imported where torchvision is not installed: two of its architectures name functions
    of it when they are imported, and neither is an upscaler."""
    if find_spec("torchvision") is not None or "spandrel" in sys.modules:
        yield
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stand_ins = {name: ModuleType(name) for name in names}
    for function in ("InterpolationMode", "rotate", "normalize"):
        setattr(stand_ins[names[-1]], function, None)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
