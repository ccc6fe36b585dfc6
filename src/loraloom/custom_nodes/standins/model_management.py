"""Stands in for `comfy.model_management`: devices, and stopping.

Where models are is Loraloom's own affair; what packs may ask is where tensors should be.
"""

from __future__ import annotations

import torch

from loraloom.custom_nodes.current import current_run
from loraloom.errors import Cancelled as InterruptProcessingException
from loraloom.runtime.services import Services

__all__ = [
    "InterruptProcessingException",
    "get_torch_device",
    "intermediate_device",
    "is_device_cpu",
    "is_device_cuda",
    "is_device_mps",
    "processing_interrupted",
    "soft_empty_cache",
    "text_encoder_device",
    "throw_exception_if_processing_interrupted",
    "unet_offload_device",
    "vae_device",
    "vae_offload_device",
]


def get_torch_device() -> torch.device:
    """The device that the session computes on; outside of a run, the one it would choose."""
    run = current_run()
    if run is not None and isinstance(run.services, Services):
        return run.services.memory.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def intermediate_device() -> torch.device:
    """Where values between nodes are kept."""
    return torch.device("cpu")


text_encoder_device = vae_device = get_torch_device
unet_offload_device = vae_offload_device = intermediate_device


def is_device_cpu(device: torch.device) -> bool:
    return torch.device(device).type == "cpu"


def is_device_cuda(device: torch.device) -> bool:
    return torch.device(device).type == "cuda"


def is_device_mps(device: torch.device) -> bool:
    return torch.device(device).type == "mps"


def soft_empty_cache(force: bool = False) -> None:
    """Give memory that torch keeps in reserve back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def processing_interrupted() -> bool:
    """Whether the run was stopped."""
    try:
        throw_exception_if_processing_interrupted()
    except InterruptProcessingException:
        return True
    return False


def throw_exception_if_processing_interrupted() -> None:
    """Raise InterruptProcessingException when the run was stopped."""
    run = current_run()
    if run is not None:
        run.check_cancelled()
