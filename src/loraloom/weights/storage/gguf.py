"""GGUF: blocks of values with their scales, in the types of llama.cpp (Q8_0, Q4_K, …).

Weights are widened and multiplied with their values, as ComfyUI-GGUF does.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.weights.formats import Format, Layer, Packing, Parts, Settings, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class _Gguf(Format):
    name = "gguf"
    title = "GGUF"
    shared = frozenset({"folded"})

    def describe(self, layer: Layer) -> tuple[Shape, Packing]:
        raise ModelFileError("GGUF weights are in files of their own")

    def prepared(self, parts: dict[str, Tensor], shape: Shape, settings: Settings) -> dict[str, Tensor]:
        """weight: bytes (rows, bytes of a row), or values where the rows of the shape are no whole blocks
        ("folded": all of it in one)."""
        import torch

        from loraloom.weights.gguf_blocks import dequantised

        kind, stored = settings["format"], list(parts.values())
        if settings.get("joined") == "frames":
            frames = [dequantised(part, kind).reshape(shape[0], shape[1], *shape[3:]) for part in stored]
            return {"weight": torch.stack(frames, 2)}
        whole = stored[0] if len(stored) == 1 else torch.cat(stored)
        if heads := settings.get("heads"):
            whole = whole.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        if whole.numel() % max(1, shape[0]) or not _are_blocks(kind, prod(shape[1:])):
            return {"folded": whole}
        return {"weight": whole.reshape(shape[0], -1)}

    def widened(self, parts: Parts, settings: Settings, shape: Shape, dtype: torch.dtype) -> Tensor:
        from loraloom.weights.gguf_blocks import dequantised

        stored = parts["weight"] if "weight" in parts else parts["folded"]
        values = stored if stored.is_floating_point() else dequantised(stored, settings["format"])
        return values.reshape(shape).to(dtype)

    def rounded(self, values: Tensor, parts: Parts, settings: Settings) -> Tensor | None:
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        from loraloom.weights.gguf_blocks import dequantised

        del parts
        kind = settings["format"]
        try:
            stored = quantize(values.contiguous().cpu().numpy(), GGMLQuantizationType[kind])
        except NotImplementedError:
            return None
        return dequantised(torch.from_numpy(stored), kind)


def _are_blocks(kind: str, columns: int) -> bool:
    from loraloom.weights.gguf_names import BLOCK_SIZES

    return columns % BLOCK_SIZES[kind][0] == 0


FORMAT = _Gguf()
