"""Upscale models (ESRGAN and its successors), recognised and built by spandrel from their weights alone."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.models.tiles import in_tiles
from loraloom.weights.capacity import is_allocation_failure
from loraloom.weights.tensor_file import TensorFile

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

    from loraloom.models.residency.memory import Memory

TILE, SMALLEST_TILE, OVERLAP = 512, 128, 32
MAPS = 3
"""Maps of the enlarged tile that a network holds at once: what a convolution reads, writes and activates."""


class Upscaler:
    """A network from pictures (1, 3, H, W) to pictures `scale` times as large.

    Its home is the host's memory. To that of a device it is a guest, which stays after a call until somebody
    else needs the room."""

    def __init__(self, network: ImageModelDescriptor[Any], name: str) -> None:
        self._network = network
        self.name = name
        self.scale = network.scale
        tensors = (*network.model.parameters(), *network.model.buffers())
        self._size = sum(tensor.nbytes for tensor in tensors)

    @property
    def held(self) -> int:
        """Bytes on a device."""
        return 0 if self._network.device.type == "cpu" else self._size

    @torch.inference_mode()
    def put_away(self) -> bool:
        """Go home; whether it was away."""
        was_away = self.held > 0
        self._network.to(torch.device("cpu"))
        return was_away

    @torch.inference_mode()
    def __call__(self, image: Tensor, memory: Memory) -> Tensor:
        """(B, H, W, 3) in [0, 1] → (B, scale · H, scale · W, 3), in tiles, small ones where memory is short;
        what tiles make is put together in the host's memory.

        Raises what the allocator raises when the smallest do not fit either."""
        tile, shape = TILE, image.shape[1:3]
        while not self._comes(tile, shape, memory) and tile > SMALLEST_TILE:
            tile //= 2
        while True:
            try:
                self._comes(tile, shape, memory)
                self._network.to(memory.device).eval()
                one = partial(self._one, device=memory.device)
                upscaled = in_tiles(one, image.movedim(-1, 1), (tile, tile), OVERLAP, self.scale)
                return upscaled.movedim(1, -1).clamp(0, 1)
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                self.put_away()
                if not memory.give_way():
                    if tile <= SMALLEST_TILE:
                        raise
                    tile //= 2

    def _comes(self, tile: int, shape: Sequence[int], memory: Memory) -> bool:
        """Whether there is room for the network and a tile of a picture (H, W). torch.OutOfMemoryError where
        even the smallest lacks more than the estimate may be off."""
        needed = self._bytes(min(tile, shape[0]), min(tile, shape[1]))
        size = 0 if memory.device.type == "cpu" else self._size
        if memory.has_room_for(self, size, needed):
            return True
        if tile <= SMALLEST_TILE:
            memory.check_doubt(needed + size - self.held)
        return False

    def _bytes(self, height: int, width: int) -> int:
        """What a tile takes: a few maps of its enlarged size, as many channels as the widest convolution."""
        parameters = list(self._network.model.parameters())
        channels = max((p.shape[0] for p in parameters if p.ndim == 4), default=1)
        return MAPS * height * width * self.scale**2 * channels * self._network.dtype.itemsize

    def _one(self, tile: Tensor, device: torch.device) -> Tensor:
        return self._network(tile.to(device, self._network.dtype)).float().cpu()


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
