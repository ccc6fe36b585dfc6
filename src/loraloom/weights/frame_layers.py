"""Layers of autoencoders for films (Wan, Qwen-Image), where what comes is one picture: the same numbers but
for rounding, with less work on a processor.

- A kernel that looks back sees nothing but zeros: it is one over a picture.
- Nothing is kept for frames that will not come.
- A norm takes its lengths of the map and changes it where it lies, instead of a copy in float32.

On other devices, and while gradients are taken, layers do what they always did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.weights.picture_layers import convolved, is_channels_last, is_free

SHORTEST = 1e-12
"""The length that a shorter vector is taken to have, as `F.normalize` does."""

if TYPE_CHECKING:
    _Conv2d, _Conv3d, _Module = nn.Conv2d, nn.Conv3d, nn.Module
else:
    _Conv2d = _Conv3d = _Module = object


class FilmAutoencoder(_Module):
    """diffusers' autoencoder of films, which decodes and encodes frame by frame: of a single one nothing is
    kept. Without that list of its, the convolutions see zeros before the frame, as at the beginning."""

    _is_picture = False

    def _decode(self, z: Tensor, return_dict: bool = True) -> Any:
        self._is_picture = z.shape[2] == 1
        return super()._decode(z, return_dict=return_dict)  # pyright: ignore

    def _encode(self, x: Tensor) -> Tensor:
        self._is_picture = x.shape[2] == 1
        return super()._encode(x)  # pyright: ignore

    def clear_cache(self) -> None:
        super().clear_cache()  # pyright: ignore
        if self._is_picture:
            self._feat_map = self._enc_feat_map = None


class FrameNorm(_Module):
    """diffusers' RMS norm over channels: x · √C / ‖x‖ · γ."""

    if TYPE_CHECKING:
        channel_first: bool
        scale: float
        gamma: Tensor
        bias: Tensor | float

    def forward(self, x: Tensor) -> Tensor:
        is_usual = self.channel_first and not isinstance(self.bias, Tensor) and x.dtype != torch.float16
        if not is_usual or not is_free(x):
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min_(SHORTEST)
        return x.mul(length.reciprocal_().mul_(self.scale).to(x.dtype)).mul_(self.gamma)


class FrameResidualBlock(_Module):
    """A residual block of these autoencoders, whose maps are changed where they lie."""

    if TYPE_CHECKING:
        nonlinearity: nn.Module
        norm1: nn.Module
        norm2: nn.Module
        conv1: nn.Module
        conv2: nn.Module
        conv_shortcut: nn.Module

    def forward(self, x: Tensor, *args: Any, **given: Any) -> Tensor:
        is_kept = any(value is not None for value in (*args[:1], given.get("feat_cache")))
        is_usual = isinstance(self.nonlinearity, nn.SiLU) and not self.training
        if is_kept or not is_usual or not is_free(x):
            return super().forward(x, *args, **given)
        made: Tensor = self.conv1(F.silu(self.norm1(x), inplace=True))
        made = self.conv2(F.silu(self.norm2(made), inplace=True))
        return made.add_(self.conv_shortcut(x))


class FrameConv(_Conv3d):
    """A convolution over frames that looks back only."""

    if TYPE_CHECKING:
        _padding: tuple[int, ...]

    def forward(self, input: Tensor, cache_x: Tensor | None = None) -> Tensor:
        columns, _, rows, _, back, _ = self._padding
        is_picture = input.shape[2] == 1 and cache_x is None and back == self.kernel_size[0] - 1
        if not is_picture or not is_free(input):
            return super().forward(input, cache_x)  # pyright: ignore[reportCallIssue]
        order = torch.channels_last if is_channels_last(input.dtype) else torch.contiguous_format
        kernel = self.weight[:, :, -1].contiguous(memory_format=order)
        is_plain = kernel.shape[2:] == (3, 3) and rows == columns == 1 and self.stride == (1, 1, 1)
        if is_plain:
            return convolved(input[:, :, 0], kernel, self.bias)[:, :, None]
        return F.conv2d(input[:, :, 0], kernel, self.bias, self.stride[1:], (rows, columns))[:, :, None]


class OneFrameConv(_Conv2d):
    """The same where the model knows pictures only: input and output have a frame, the kernel none."""

    if TYPE_CHECKING:
        _padding: tuple[int, ...]

    def forward(self, input: Tensor, cache_x: Tensor | None = None) -> Tensor:
        is_plain = self.kernel_size == (3, 3) and self.stride == (1, 1) and set(self._padding) == {1}
        if is_plain and cache_x is None and input.shape[2] == 1 and is_free(input):
            return convolved(input[:, :, 0], self.weight, self.bias)[:, :, None]
        return super().forward(input, cache_x)  # pyright: ignore[reportCallIssue]
