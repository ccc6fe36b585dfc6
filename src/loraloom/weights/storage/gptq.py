"""Files of GPTQ and AWQ (4-bit integers): recognised, and refused with what to take instead."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.weights.formats import Format, TensorInfo


class _Gptq(Format):
    name = "gptq"
    title = "a GPTQ or AWQ file"

    def refuses(self, names: Mapping[str, TensorInfo]) -> str | None:
        layers = [name.removesuffix(".qzeros") for name in names if name.endswith(".qzeros")]
        if not any(f"{layer}.qweight" in names for layer in layers):
            return None
        return (
            "such weights are not read here; take the int8 or fp8 file of the same model, or a GGUF of Q4_K,"
            " which is about as small"
        )


FORMAT = _Gptq()
