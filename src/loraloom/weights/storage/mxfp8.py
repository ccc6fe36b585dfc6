"""8-bit floats with a power of two for every 32 columns (OCP Microscaling): W = q · 2^(e - 127).

An exponent of 0 stands for blocks of zeros. Multiplied with their values, except where a device has products
of this kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraloom.errors import ModelFileError
from loraloom.weights.blocked import tiled, tiled_shape, untiled
from loraloom.weights.formats import FP8, Format, Layer, Packing, Parts, Settings, Shape, must_have_shape
from loraloom.weights.storage.fp8 import widened_floats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 32


class _Mxfp8(Format):
    name = "mxfp8"
    title = "8-bit floats with scales for 32 columns"
    said = ("mxfp8",)

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        weight = layer.matrix(FP8)
        rows, columns = weight.shape
        if columns % BLOCK:
            raise ModelFileError(f"its {columns} columns are no multiple of {BLOCK}")
        scale = layer.need(("U8", "F8_E8M0"), "weight_scale")
        must_have_shape(scale, tiled_shape(rows, columns // BLOCK), "weight_scale")
        return weight.shape, Packing(self.name, {"weight": weight, "exponent": scale}, layer.said)

    def prepared(self, parts: dict[str, Tensor], shape: Shape, settings: Settings) -> dict[str, Tensor]:
        del settings
        exponent = untiled(parts["exponent"], shape[0], shape[1] // BLOCK)
        if bool((exponent == 255).any()):
            raise ModelFileError("its weight_scale holds values that are no numbers")
        return {"weight": parts["weight"], "exponent": exponent}

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        import torch

        del settings
        values = widened_floats(parts["weight"], torch.float32).unflatten(1, (-1, BLOCK))
        return (values * _powers(parts["exponent"])[..., None]).reshape(shape).to(dtype)

    def pack(self, weight: Tensor, option: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        import torch

        del option
        if weight.shape[1] % BLOCK:
            return None
        blocks = weight.unflatten(1, (-1, BLOCK))
        largest = blocks.abs().amax(-1)
        exponent = (largest / 448).clamp_min(2.0**-126).log2().ceil().add_(127).clamp_(1, 254)
        exponent = exponent.to(torch.uint8).masked_fill_(largest == 0, 0)
        values = blocks / _powers(exponent.masked_fill(largest == 0, 127))[..., None]
        stored = values.clamp_(-448, 448).reshape(weight.shape).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale": tiled(exponent)}, {"format": "mxfp8"}


def _powers(exponent: Tensor) -> Tensor:
    """2^(e - 127), and 0 for e = 0: the bits of a float32 whose exponent this is."""
    import torch

    return (exponent.to(torch.int32) << 23).view(torch.float32)


FORMAT = _Mxfp8()
