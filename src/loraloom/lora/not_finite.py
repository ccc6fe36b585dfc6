"""Values in a file that are no numbers: NaN and infinities, told by their bits. No torch.

A training run that diverged leaves them behind; one is enough to make a picture black.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from loraloom.lora.receipt import shorten
from loraloom.weights.header import Header, open_regular

# Stored type → (its bits as a whole number, mask, what they are where the value is not finite).
# IEEE 754: all bits of the exponent. float8_e4m3fn has no infinity, and one NaN of either sign.
_MARKS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "F16": ("<u2", 0x7C00, 0x7C00),
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F8_E4M3": ("<u1", 0x7F, 0x7F),
    "F8_E5M2": ("<u1", 0x7C, 0x7C),
}
_CHUNK = 1 << 22


def not_finite(header: Header) -> dict[str, int]:
    """Tensor name → how many of its values are NaN or infinite, for those that have any. Reads the whole
    file."""
    import numpy as np  # takes longer to import than all else that this needs

    found: dict[str, int] = {}
    with os.fdopen(open_regular(header.path), "rb") as file:
        for name, info in sorted(header.tensors.items(), key=lambda item: item[1].begin):
            if info.dtype not in _MARKS:
                continue
            kind, mask, mark = _MARKS[info.dtype]
            file.seek(header.data_start + info.begin)
            count, left = 0, info.nbytes
            while left > 0 and (data := file.read(min(left, _CHUNK))):
                left -= len(data)
                bits = np.frombuffer(data, kind, count=len(data) // np.dtype(kind).itemsize)
                count += int(np.count_nonzero((bits & bits.dtype.type(mask)) == mark))
            if count:
                found[name] = count
    return found


def say_not_finite(found: Mapping[str, int]) -> str:
    """In one line."""
    values, tensors = sum(found.values()), len(found)
    return (
        f"{values} {'value is' if values == 1 else 'values are'} NaN or infinite, in {tensors} "
        f"{'tensor' if tensors == 1 else 'tensors'}: {shorten([*found], 3)}"
    )
