"""Integers of 8 bits with a scale for the weight or by row: W = q · scale, possibly turned (convrot).

ComfyUI calls it int8_tensorwise. It rounds the input by row too and multiplies integers, on CPUs as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraloom.weights.formats import Format, Layer, Packing, Parts, Settings, Shape, row_scale
from loraloom.weights.rotation import GROUP, check_group, rotated

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class _Int8(Format):
    name = "int8"
    title = "8-bit integers"
    said = ("int8_tensorwise",)
    rounds_inputs = True

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        weight = layer.need(("I8",), "weight")
        if layer.flag("convrot"):
            check_group(layer.count("convrot_groupsize", GROUP), layer.matrix(("I8",)).shape[1])
        rows = weight.shape[0] if len(weight.shape) > 1 else layer.matrix(("I8",)).shape[0]
        scale = row_scale(layer, rows, "weight_scale", "scale_weight")
        return weight.shape, Packing(self.name, {"weight": weight, "scale": scale}, layer.said)

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        values, scale = parts["weight"].float(), parts["scale"].float()
        values *= scale.reshape(-1, *[1] * (len(shape) - 1)) if scale.dim() else scale
        group = _group(settings)
        return (rotated(values, group) if group else values).to(dtype)

    def product(self, parts: Parts, settings: Settings, shape: Shape, x: Tensor) -> Tensor:
        from loraloom.weights.integers import turned_product

        del shape
        return turned_product(x, parts["weight"], parts["scale"], _group(settings))

    def option(self, settings: Settings) -> str:
        group = _group(settings)
        return f"convrot{group}" if group else ""

    def pack(self, weight: Tensor, option: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """option: "" (by row), "convrot" or "convrot256" (turned in groups, where the columns allow it)."""
        import torch

        said: dict[str, Any] = {"format": "int8_tensorwise"}
        if option.startswith("convrot"):
            group = int(option.removeprefix("convrot") or GROUP)
            if weight.shape[1] % check_group(group, group) == 0:
                weight = rotated(weight, group)
                said |= {"convrot": True, "convrot_groupsize": group}
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
        stored = (weight / scale).round_().clamp_(-128, 127).to(torch.int8)
        return {"weight": stored, "weight_scale": scale}, said


def _group(settings: Settings) -> int:
    return int(settings.get("convrot_groupsize", GROUP)) if settings.get("convrot") else 0


FORMAT = _Int8()
