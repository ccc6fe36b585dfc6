"""Files of bitsandbytes (NF4, FP4, LLM.int8): recognised, and refused with what to take instead."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.weights.formats import Format, TensorInfo

_TAILS = (".weight.absmax", ".weight.quant_map", ".weight_format", ".SCB")


class _BitsAndBytes(Format):
    name = "bitsandbytes"
    title = "a bitsandbytes file (NF4 or LLM.int8)"

    def refuses(self, names: Mapping[str, TensorInfo]) -> str | None:
        if not any(name.endswith(_TAILS) or ".quant_state.bitsandbytes__" in name for name in names):
            return None
        return (
            "such weights are not read here; take the int8 or fp8 file of the same model, or a GGUF of Q4_K,"
            " which is about as small and closer to the original"
        )


FORMAT = _BitsAndBytes()
