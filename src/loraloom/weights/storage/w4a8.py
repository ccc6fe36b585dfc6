"""Codes of 4 or 6 bits that stand for 8-bit integers: level = round(table[code] · s_rel) by group of columns,
W = (level · s_channel) · H by row.

ComfyUI's name is asym_w4a8_int8: the levels are multiplied as int8 weights are, with rounded inputs. Codes
of 6 bits have no table: they are even steps around 32. A "weight_correction" is added to each group; such
weights are multiplied with their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.weights.formats import (
    SCALES,
    Format,
    Layer,
    Packing,
    Parts,
    Settings,
    Shape,
    TensorInfo,
    must_have_shape,
)
from loraloom.weights.rotation import GROUP, check_group, rotated

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COLUMNS = 16
"""Columns that share an s_rel, where a file does not say."""


class _Coded(Format):
    name = "w4a8"
    title = "4- or 6-bit codes of 8-bit integers"
    said = ("asym_w4a8_int8",)
    shared = frozenset({"table"})
    rounds_inputs = True

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        weight = layer.matrix(("I8", "U8"))
        rows, stored = weight.shape
        relative = layer.need(("F8_E4M3", *SCALES), "weight_s_rel")
        if len(relative.shape) != 2:
            raise ModelFileError(f"its weight_s_rel has shape {list(relative.shape)}, which is no matrix")
        groups = relative.shape[1]
        columns = groups * layer.count("group_size", COLUMNS)
        bits = 8 * stored // max(columns, 1)
        if bits not in (4, 6) or bits * columns != 8 * stored or columns % 16:
            raise ModelFileError(f"{stored} bytes a row do not hold {columns} codes of 4 or 6 bits")
        check_group(layer.count("convrot_groupsize", GROUP), columns)
        channel = layer.need(SCALES, "weight_s_channel")
        must_have_shape(relative, (rows, groups), "weight_s_rel")
        must_have_shape(channel, (rows,), "weight_s_channel")
        parts = {"weight": weight, "relative": relative, "channel": channel}
        parts |= self._optional(layer, (groups, rows), bits)
        return (rows, columns), Packing(self.name, parts, layer.said)

    def _optional(self, layer: Layer, groups: Shape, bits: int) -> dict[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for role, name, shape in (
            ("table", "weight_codebook", (16,)),
            ("correction", "weight_correction", groups),
        ):
            if layer.part(name) is not None:
                found[role] = layer.need(SCALES, name)
                must_have_shape(found[role], shape, name)
                if bits == 6:
                    raise ModelFileError(f"codes of 6 bits have no {name}")
        return found

    def prepared(self, parts: dict[str, Tensor], shape: Shape, settings: Settings) -> dict[str, Tensor]:
        found = super().prepared(parts, shape, settings)
        found["relative"] = parts["relative"]
        found["channel"] = parts["channel"].reshape(-1, 1)
        if "correction" in parts:
            found["correction"] = parts["correction"].T
        return found

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        values = _levels(parts, shape[1]) * parts["channel"].float()
        if "correction" in parts:
            correction = parts["correction"].float()
            values += correction.repeat_interleave(shape[1] // correction.shape[1], 1)
        return rotated(values, _group(settings)).to(dtype)

    def product(self, parts: Parts, settings: Settings, shape: Shape, x: Tensor) -> Tensor:
        import torch

        from loraloom.weights.integers import turned_product

        if "correction" in parts:
            return super().product(parts, settings, shape, x)
        levels = _levels(parts, shape[1]).to(torch.int8)
        return turned_product(x, levels, parts["channel"], _group(settings))


def _group(settings: Settings) -> int:
    return int(settings.get("convrot_groupsize", GROUP))


def _levels(parts: Parts, columns: int) -> Tensor:
    """Whole numbers from -127 to 127 (rows, columns), float32."""
    codes, table, relative = _codes(parts["weight"], columns), parts.get("table"), parts["relative"].float()
    middle = 8 if parts["weight"].shape[1] * 2 == columns else 32
    values = codes.float() - middle if table is None else table.float()[codes.long()]
    values *= relative.repeat_interleave(columns // relative.shape[1], 1)
    return values.round_().clamp_(-127, 127)


def _codes(packed: Tensor, columns: int) -> Tensor:
    """(rows, bytes) → (rows, columns), uint8. First a plane of low halves, the even column in the low half of
    a byte; for 6 bits a plane of the two bits above follows, four columns a byte."""
    import torch

    stored = packed.view(torch.uint8)
    low = stored[:, : columns // 2]
    codes = torch.stack([low & 15, low >> 4], -1).flatten(1)
    if stored.shape[1] > columns // 2:
        high = stored[:, columns // 2 :]
        codes |= torch.stack([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], -1).flatten(1)
    return codes


FORMAT = _Coded()
