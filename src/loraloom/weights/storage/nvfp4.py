"""Floats of 4 bits (E2M1), two a byte, with an 8-bit scale for every 16 columns and one for the weight:
W = q · scale · scale_2 (NVIDIA's NVFP4).

Some layers have a "pre_quant_scale" by column, which their input is multiplied with. Multiplied with their
values, except where a device has products of this kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraloom.errors import ModelFileError
from loraloom.weights.blocked import tiled, tiled_shape, untiled
from loraloom.weights.formats import SCALES, Format, Layer, Packing, Parts, Settings, Shape, must_have_shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 16
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three low bits stand for; the fourth is the sign."""


class _Nvfp4(Format):
    name = "nvfp4"
    title = "4-bit floats with scales for 16 columns"
    said = ("nvfp4",)
    shared = frozenset({"before"})

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        weight = layer.matrix(("U8", "I8"))
        rows, columns = weight.shape[0], 2 * weight.shape[1]
        if columns % BLOCK:
            raise ModelFileError(f"its {columns} columns are no multiple of {BLOCK}")
        scale = layer.need(("F8_E4M3", "U8"), "weight_scale")
        must_have_shape(scale, tiled_shape(rows, columns // BLOCK), "weight_scale")
        whole = layer.need(SCALES, "weight_scale_2")
        if whole.shape not in ((), (1,)):
            raise ModelFileError(f"its weight_scale_2 has shape {list(whole.shape)}; one number was expected")
        parts = {"weight": weight, "scale": scale, "whole": whole}
        if layer.part("pre_quant_scale") is not None:
            parts["before"] = layer.need(SCALES, "pre_quant_scale")
            must_have_shape(parts["before"], (columns,), "pre_quant_scale")
        return (rows, columns), Packing(self.name, parts, layer.said)

    def prepared(self, parts: dict[str, Tensor], shape: Shape, settings: Settings) -> dict[str, Tensor]:
        import torch

        del settings
        scale = untiled(parts["scale"].view(torch.uint8), shape[0], shape[1] // BLOCK)
        found = {**parts, "scale": scale.view(torch.float8_e4m3fn), "whole": parts["whole"].reshape(())}
        if not bool(found["scale"].float().isfinite().all()):
            raise ModelFileError("its weight_scale holds values that are no numbers")
        return found

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        import torch
        from torch.nn import functional

        del settings
        packed = parts["weight"].view(torch.uint8)
        one = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], device=packed.device)
        pairs = torch.cartesian_prod(one, one)  # of a byte: the even column is the high half
        scale = parts["whole"].float() * parts["scale"].float()
        values = functional.embedding(packed.int(), pairs).reshape(shape[0], -1, BLOCK)
        values = (values * scale[..., None]).reshape(shape)
        if "before" in parts:
            values *= parts["before"].float()
        return values.to(dtype)

    def pack(self, weight: Tensor, option: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        import torch

        del option
        if weight.shape[1] % BLOCK or weight.shape[0] % BLOCK:
            return None
        blocks = weight.unflatten(1, (-1, BLOCK))
        whole = (weight.abs().max() / (448 * 6)).clamp_min(torch.finfo(torch.float32).tiny)
        scale = (blocks.abs().amax(-1) / 6 / whole).clamp_(max=448).to(torch.float8_e4m3fn)
        step = scale.float() * whole
        values = torch.where(step[..., None] > 0, blocks / step[..., None], 0)
        codes = _nearest(values.abs()) | (values < 0).to(torch.uint8) << 3
        codes = codes.reshape(weight.shape)
        return (
            {
                "weight": codes[:, ::2] << 4 | codes[:, 1::2],
                "weight_scale": tiled(scale.view(torch.uint8)).view(torch.float8_e4m3fn),
                "weight_scale_2": whole,
            },
            {"format": "nvfp4"},
        )


def _nearest(magnitudes: Tensor) -> Tensor:
    """The code of the nearest magnitude, of two equally near ones the even."""
    import torch

    table = torch.tensor(MAGNITUDES, device=magnitudes.device)
    middle = (table[1:] + table[:-1]) / 2
    above = torch.bucketize(magnitudes, middle, right=True)  # a tie counts as above
    tie = magnitudes == middle[(above - 1).clamp_min(0)]
    return (above - (tie & (above % 2 == 1)).long()).to(torch.uint8)


FORMAT = _Nvfp4()
