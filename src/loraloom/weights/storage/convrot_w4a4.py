"""Integers of 4 bits, two a byte, turned in groups, with a scale by row: W = (q · scale) · H.

ComfyUI's name is convrot_w4a4: it rounds the turned input to 4 bits by row too, or to 8 where the layer's
"linear_dtype" says int8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraloom.weights.formats import Format, Layer, Packing, Parts, Settings, Shape, row_scale
from loraloom.weights.rotation import GROUP, check_group, rotated

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEVELS = 7


class _Int4(Format):
    name = "convrot_w4a4"
    title = "4-bit integers"
    said = ("convrot_w4a4",)
    rounds_inputs = True

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        weight = layer.matrix(("I8", "U8"))
        rows, half = weight.shape
        check_group(layer.count("convrot_groupsize", GROUP), 2 * half)
        scale = row_scale(layer, rows, "weight_scale")
        return (rows, 2 * half), Packing(self.name, {"weight": weight, "scale": scale}, layer.said)

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        values = _signed(parts["weight"]).float().mul_(parts["scale"].float())
        return rotated(values, _group(settings)).to(dtype)

    def product(self, parts: Parts, settings: Settings, shape: Shape, x: Tensor) -> Tensor:
        from loraloom.weights.integers import INT8_LEVELS, integer_product

        del shape
        levels = INT8_LEVELS if settings.get("linear_dtype") == "int8" else LEVELS
        turned = rotated(x, _group(settings))
        return integer_product(turned, _signed(parts["weight"]), parts["scale"], levels)

    def option(self, settings: Settings) -> str:
        return str(_group(settings))

    def pack(self, weight: Tensor, option: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        import torch

        group = int(option or GROUP)
        if weight.shape[1] % check_group(group, group) or weight.shape[1] % 64:
            return None
        turned = rotated(weight, group)
        scale = turned.abs().amax(1).clamp_min(1e-10) / LEVELS
        levels = (turned / scale[:, None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int32) & 15
        stored = (levels[:, ::2] | levels[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
        return (
            {"weight": stored, "weight_scale": scale},
            {"format": "convrot_w4a4", "convrot_groupsize": group},
        )


def _group(settings: Settings) -> int:
    return int(settings.get("convrot_groupsize", GROUP))


def _signed(packed: Tensor) -> Tensor:
    """(rows, in / 2) → (rows, in), int8: the even column is the low half of a byte, in two's complement."""
    import torch

    whole = packed.view(torch.int8)
    return torch.stack([(whole << 4) >> 4, whole >> 4], -1).flatten(1)


FORMAT = _Int4()
