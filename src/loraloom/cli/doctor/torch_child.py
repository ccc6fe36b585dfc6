"""What torch says of this machine, as one line of JSON.

Run as a process of its own: a torch that crashes or hangs does so here."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def facts() -> dict[str, Any]:
    """The build, the device that `--device auto` takes, and every device with whether it computes."""
    begun = time.monotonic()
    import torch

    from loraloom.models.residency.devices import device_named

    took = time.monotonic() - begun
    return {
        "version": torch.__version__,
        "build": _build(torch),
        "seconds": round(took, 2),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "auto": device_named("auto").type,
        "devices": [_device(torch, name) for name in _names(torch)],
        "refused": _refused(torch),
        "torchvision": _torchvision(),
    }


def _build(torch: Any) -> str:
    for kind in ("hip", "cuda", "xpu"):
        if version := getattr(torch.version, kind, None):
            return f"{'ROCm' if kind == 'hip' else kind.upper()} {version}"
    return "Metal" if torch.backends.mps.is_built() else "CPU"


def _names(torch: Any) -> list[str]:
    names = ["cpu"]
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        if module.is_available():
            names += [f"{kind}:{index}" for index in range(module.device_count())]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def _device(torch: Any, name: str) -> dict[str, Any]:
    from loraloom.weights.capacity import has_native_bfloat16

    device = torch.device(name)
    found: dict[str, Any] = {"name": name, "bfloat16": has_native_bfloat16(device), "fault": None}
    try:
        if device.type in ("cuda", "xpu"):
            module = torch.get_device_module(device)
            found["title"] = module.get_device_properties(device).name
            found["free"], found["total"] = module.mem_get_info(device)
        ones = torch.ones(8, 8, device=device)
        if (ones @ ones).sum().item() != 512:
            found["fault"] = "a product of matrices came out wrong"
    except Exception as error:  # noqa: BLE001 - whatever the driver does is the answer
        found["fault"] = str(error).strip().partition("\n")[0]
    return found


def _refused(torch: Any) -> str | None:
    """Why a build for CUDA or ROCm finds no device."""
    if torch.version.cuda is None and torch.version.hip is None or torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except Exception as error:  # noqa: BLE001 - the driver's own words
        return str(error).strip().partition("\n")[0]
    return None


def _torchvision() -> str | None:
    """What is wrong with torchvision, if it is there: compiled for another torch, it breaks transformers."""
    if find_spec("torchvision") is None:
        return None
    try:
        import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - it fails in many ways
        return str(error).strip().partition("\n")[0]
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
