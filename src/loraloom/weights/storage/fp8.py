"""Floats of 8 bits, or of more, with or without a scale: W = q · scale, for the whole weight or by row.

ComfyUI calls them float8_e4m3fn and float8_e5m2, and keeps the scale in "weight_scale" or, formerly,
"scale_weight". The input stays as it is, unless products in 8 bits were asked for (`Packed.multiplied`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraloom.weights.formats import (
    FP8,
    SCALES,
    Format,
    Layer,
    Packing,
    Parts,
    Settings,
    Shape,
    row_scale,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STRIP = 1 << 18


class _Float(Format):
    name = "fp8"
    passing = 0
    title = "8-bit floats"
    said = tuple(FP8.values())
    shared = frozenset({"input_scale"})

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        weight = layer.need((*FP8, *SCALES), "weight")
        parts = {"weight": weight}
        if layer.part("weight_scale", "scale_weight") is not None:
            rows = weight.shape[0] if weight.shape else 1
            parts["scale"] = row_scale(layer, rows, "weight_scale", "scale_weight")
        if layer.part("input_scale", "scale_input") is not None:
            parts["input_scale"] = row_scale(layer, 1, "input_scale", "scale_input")
        return weight.shape, Packing(self.name, parts, layer.said)

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        import torch

        del settings
        values, scale = widened_floats(parts["weight"], dtype), parts.get("scale")
        if scale is not None:
            scale = scale.reshape(-1, *[1] * (len(shape) - 1)) if scale.dim() else scale
            if dtype == torch.float16:  # a scale may be too small for it
                return (values.float() * scale.float()).to(dtype)
            values = (values if values is not parts["weight"] else values.clone()).mul_(scale.to(dtype))
        return values

    def product(self, parts: Parts, settings: Settings, shape: Shape, x: Tensor) -> Tensor:
        """The scale is applied to the output, where it costs nothing; in float16, whose range the sums
        would leave, to the weight."""
        import torch
        from torch.nn import functional

        if "multiplied" in settings and (y := _multiplied(parts, x)) is not None:
            return y
        if x.dtype == torch.float16:
            return functional.linear(x, self.widened(parts, settings, shape, x.dtype))
        y = functional.linear(x, widened_floats(parts["weight"], x.dtype))
        scale = parts.get("scale")
        return y if scale is None else y * scale.reshape(-1).to(x.dtype)

    def rounded(self, values: Tensor, parts: Parts, settings: Settings) -> Tensor | None:
        """With a scale of its own where the weight has one, else as it is."""
        import torch

        del settings
        dtype = parts["weight"].dtype
        limit = torch.finfo(dtype).max
        scale = (values.abs().max() / limit).clamp_min(1e-30) if "scale" in parts else 1.0
        return (values / scale).clamp_(-limit, limit).to(dtype).to(values.dtype) * scale

    def pack(self, weight: Tensor, option: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import torch

        dtype = {"": torch.float8_e4m3fn, "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[option]
        limit = torch.finfo(dtype).max
        scale = (weight.abs().max() / limit).clamp_min(torch.finfo(torch.float32).tiny)
        stored = (weight / scale).clamp_(-limit, limit).to(dtype)
        return {"weight": stored, "weight_scale": scale}, {"format": str(dtype).removeprefix("torch.")}


def _multiplied(parts: Parts, x: Tensor) -> Tensor | None:
    """x (…, in) · Wᵀ in 8 bits, x divided by the file's scale for it and rounded; None where the device's
    code does not take such sizes, types or scales."""
    import torch

    weight, scale, of_input = parts["weight"], parts.get("scale"), parts.get("input_scale")
    fits = all(side % 16 == 0 for side in weight.shape) and x.dtype in (torch.bfloat16, torch.float16)
    is_one = scale is None or scale.numel() == 1
    if not fits or not is_one or weight.dtype != torch.float8_e4m3fn or weight.dim() != 2:
        return None
    limit = torch.finfo(weight.dtype).max
    one = torch.ones((), device=x.device)
    of_weight = one if scale is None else scale.float().reshape(())
    of_input = one if of_input is None else of_input.float().reshape(())
    flat = x.reshape(-1, x.shape[-1])
    flat = (flat / of_input.to(x.dtype)).clamp_(-limit, limit).to(weight.dtype)
    y = torch._scaled_mm(flat, weight.t(), out_dtype=x.dtype, scale_a=of_input, scale_b=of_weight)  # pyright: ignore[reportPrivateUsage]
    return y.reshape(*x.shape[:-1], len(weight))


def widened_floats(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in a wider type, exactly.

    On CPUs the bits of E4M3 are moved to their places in float16, whose exponent then is off by 2^8, in
    strips that stay in the cache: twice as fast as the conversion element by element. (In bfloat16 the
    subnormal values, most of a weight that has no scale, would be subnormal there too, and slow.)"""
    import torch

    if values.dtype != torch.float8_e4m3fn or values.device.type != "cpu" or not values.numel():
        return values.to(dtype)
    wide = torch.empty(values.shape, dtype=dtype)
    stored = values.contiguous().view(torch.int8).flatten()
    for strip, place in zip(stored.split(STRIP), wide.view(-1).split(STRIP), strict=True):
        bits = strip.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-0x4001)
        place.copy_(bits.view(torch.float16)).mul_(256.0)
        size = strip & 0x7F
        if int(size.amax()) == 0x7F:
            place.masked_fill_(size == 0x7F, torch.nan)
    return wide


FORMAT = _Float()
