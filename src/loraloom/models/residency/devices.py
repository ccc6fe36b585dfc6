"""The names of devices and of types to compute in, as people give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch

from loraloom.errors import InputError
from loraloom.weights.capacity import has_native_bfloat16

DtypeName: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_named(name: str) -> torch.device:
    """'auto': the first that is there of cuda, xpu, mps, cpu. InputError where it cannot be used here."""
    if name == "auto":
        has = {
            "cuda": torch.cuda.is_available,
            "xpu": torch.xpu.is_available,
            "mps": torch.backends.mps.is_available,
        }
        name = next((kind for kind, is_there in has.items() if is_there()), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"no device is called {name!r}; use auto, cpu, cuda, cuda:N, xpu or mps") from None
    if not _is_usable(device):
        said = {"cuda": "CUDA", "xpu": "Intel", "mps": "Apple"}.get(device.type, device.type)
        raise InputError(f"the device {name!r} was asked for, and there is no usable {said} device")
    return device


def _is_usable(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    try:
        module: Any = torch.get_device_module(device)
    except RuntimeError:
        return False  # "meta" and what this build of torch has no code for
    if not hasattr(module, "is_available") or not module.is_available():
        return False
    return (device.index or 0) < module.device_count()


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """'auto': bfloat16 where the device multiplies it natively, else float32."""
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    dtype = DTYPES.get(name)
    if dtype is None:
        raise InputError(f"no such type to compute in: {name!r}; use auto, {', '.join(DTYPES)}")
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError(
            "fp16 arithmetic is not offered on the CPU: it is slow and inexact; use fp32 or bf16"
        )
    return dtype
