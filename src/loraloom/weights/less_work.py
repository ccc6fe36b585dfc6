"""Which layers of a new module are to choose how they compute, and in which order their weights lie."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from loraloom.weights.frame_layers import (
    FilmAutoencoder,
    FrameConv,
    FrameNorm,
    FrameResidualBlock,
    OneFrameConv,
)
from loraloom.weights.picture_layers import (
    DoublingSequence,
    PictureConv,
    PictureTransformer,
    ResidualBlock,
    SelfAttention,
    Upsampler,
    doubles,
    is_channels_last,
)
from loraloom.weights.token_layers import PlainNorm, TokenNorm, with_quick_turns


def kernel_format(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """The order in which a layer wants its weight."""
    is_kernel = (
        isinstance(layer, PictureConv | OneFrameConv) and device.type == "cpu" and is_channels_last(dtype)
    )
    return torch.channels_last if is_kernel else torch.contiguous_format


def with_less_work(module: nn.Module) -> None:
    """Let the layers of a module choose how to compute. Their parameters stay as they are."""
    for layer in module.modules():
        kind = type(layer)
        if kind.__name__.endswith("Attention") and hasattr(layer, "processor"):
            with_quick_turns(layer)
        if kind is nn.Conv2d:
            _become(layer, PictureConv)
        elif isinstance(layer, nn.Sequential) and any(map(doubles, layer)):
            _become(layer, DoublingSequence)
        elif kind.__name__ == "Upsample2D" and hasattr(layer, "conv"):  # of diffusers
            _become(layer, Upsampler)
        elif kind.__name__ == "ResnetBlock2D" and isinstance(getattr(layer, "nonlinearity", 0), nn.SiLU):
            _become(layer, ResidualBlock)
        elif kind.__name__ == "Attention" and hasattr(layer, "processor"):
            _become(layer, SelfAttention)
        elif kind.__name__ == "Transformer2DModel" and hasattr(layer, "proj_out"):
            _become(layer, PictureTransformer)
        elif isinstance(layer, nn.Conv2d | nn.Conv3d) and kind.__name__.endswith("CausalConv3d"):
            _become(layer, FrameConv if isinstance(layer, nn.Conv3d) else OneFrameConv)
        elif kind is nn.RMSNorm:
            _become(layer, PlainNorm)
        elif kind.__name__ == "RMSNorm" and kind.__module__.startswith("diffusers."):
            _become(layer, TokenNorm)
        elif kind.__name__.endswith("RMS_norm") and hasattr(layer, "gamma"):
            _become(layer, FrameNorm)
        elif kind.__name__.endswith("ResidualBlock") and hasattr(layer, "conv_shortcut"):
            _become(layer, FrameResidualBlock)
        elif kind.__name__.startswith("AutoencoderKL") and hasattr(layer, "clear_cache"):
            _become(layer, FilmAutoencoder)


def _become(layer: nn.Module, choice: type[Any]) -> None:
    layer.__class__ = _choosing(choice, type(layer))


@cache
def _choosing(choice: type[Any], kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (choice, kind), {"__module__": kind.__module__})
