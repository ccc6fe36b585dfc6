"""SVDQuant files of nunchaku: recognised, and refused with what to take instead.

Their 4-bit weights are arranged for the registers of particular GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.weights.formats import Format, TensorInfo


class _SvdQuant(Format):
    name = "svdquant"
    title = "an SVDQuant file (nunchaku)"

    def refuses(self, names: Mapping[str, TensorInfo]) -> str | None:
        layers = {name.removesuffix(".qweight") for name in names if name.endswith(".qweight")}
        if not any(f"{layer}.wscales" in names or f"{layer}.proj_down" in names for layer in layers):
            return None
        return (
            "its 4-bit weights are laid out for nunchaku's own CUDA kernels and are not read here; take the"
            " int8 or fp8 file of the same model, or a GGUF of Q4_K or Q5_K, which is about as small"
        )


FORMAT = _SvdQuant()
