"""How a model's weights are stored in memory, and how many bytes that takes."""

from __future__ import annotations

import torch

from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.values import Storage, narrow_type
from loraloom.weights.capacity import multiplies_fp8
from loraloom.weights.source import WeightSource


def weights_bytes(source: WeightSource, dtype: torch.dtype, storage: Storage) -> int:
    """Bytes that a source's weights take once loaded to compute in `dtype`.

    Pages mapped from the file are counted too: the system may drop them, but then every use reads them."""
    total = 0
    for native, shape in source.shapes.items():
        stored, is_matrix = source.dtypes[native], len(shape) > 1
        if is_matrix and (source.is_packed(native) or storage == "stored"):
            total += source.stored_bytes(native)
            continue
        narrow = (narrow_type(storage) if is_matrix else None) or dtype
        width = narrow.itemsize if stored.is_floating_point else stored.itemsize
        total += torch.Size(shape).numel() * width
    return total


def storage_of(model: DiffusionModel, device: torch.device) -> Storage:
    """How the handle wants linear weights to be kept (UNETLoader's weight_dtype)."""
    wanted = str(model.option("weight_dtype", "default"))
    if wanted == "fp8_e4m3fn_fast" and multiplies_fp8(device):
        return "multiplied"
    if wanted.startswith("fp8_e4m3fn"):
        return torch.float8_e4m3fn
    return torch.float8_e5m2 if wanted == "fp8_e5m2" else "quantized"
