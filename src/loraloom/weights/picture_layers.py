"""Layers on pictures that do the same with less work on a processor: the same numbers but for rounding.

- A kernel of 3×3 over a picture whose pixels were doubled sees two different pixels in each direction, never
  three: four kernels of 2×2, one for each of the new pixels, on the picture as it was. 16 products for each
  of its pixels instead of 36.
- Where a picture is small and the kernel large, most of a convolution is bringing the kernel into the order
  that its code wants; in a product of matrices it is read once, as it is.
- In float32, wide convolutions on pictures that are not small take a quarter of the products (`winograd`).
- The two sides of guidance are the same until the network first looks at the prompt: they are computed once
  until then (`alike_rows`).

Kernels and pictures lie with the channels last where the processor's code is faster so. On other
devices, and while gradients are taken, all do what they always did.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.weights import winograd
from loraloom.weights.alike_rows import are_halves_alike, twice

SMALL = 0.25
"""Pixels of a picture, for each channel of the output, below which a product of matrices is faster than a
convolution, and above which four kernels are worth making, for the two pictures that guidance evaluates. One
picture decides, not the batch: in any batch it is then what it is alone."""

_LOOKS_AT = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
"""For each of the two new pixels, in one direction: which of the kernel's three weights fall on the earlier
and which on the later of the two old pixels that it sees."""

if TYPE_CHECKING:
    _Conv2d, _Sequential, _Module = nn.Conv2d, nn.Sequential, nn.Module
else:
    _Conv2d = _Sequential = _Module = object


@cache
def is_channels_last(dtype: torch.dtype) -> bool:
    """Whether convolutions on this machine's processor are faster with the channels last, as those of Intel
    and AMD are (docs/performance.md)."""
    return dtype in (torch.float32, torch.bfloat16) and "AVX" in torch.backends.cpu.get_cpu_capability()


class PictureConv(_Conv2d):
    """A convolution of pictures."""

    def forward(self, input: Tensor) -> Tensor:
        if is_free(input) and self.is_plain:
            return convolved(input, self.weight, self.bias)
        return super().forward(input)

    @property
    def is_plain(self) -> bool:
        """Whether it is 3×3, of each pixel and its neighbours, without groups."""
        return (
            self.kernel_size == (3, 3)
            and self.padding == self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
        )

    def saves_doubling(self, input: Tensor) -> bool:
        """Whether `doubled` is faster than to double the pixels first. What hooks into the layer is to see
        its real input."""
        is_hooked = bool(self._forward_hooks or self._forward_pre_hooks)
        fits = is_free(input) and self.is_plain and not is_hooked
        return fits and _pixels(input) >= SMALL * self.out_channels

    def doubled(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out, 2H, 2W): its output for the picture with each pixel doubled."""
        batch, _, height, width = input.shape
        order = torch.channels_last if _is_last(self.weight) else torch.contiguous_format
        made = torch.empty(
            (batch, self.out_channels, 2 * height, 2 * width), dtype=input.dtype, memory_format=order
        )
        for row in (0, 1):
            for column in (0, 1):
                kernel = _halved_kernel(self.weight, row, column)
                part = F.conv2d(input, kernel, self.bias, padding=1)
                made[..., row::2, column::2] = part[..., row : row + height, column : column + width]
        return made


class Upsampler(_Module):
    """diffusers' Upsample2D: each pixel doubled in both directions, then a convolution."""

    if TYPE_CHECKING:
        conv: nn.Module | None
        norm: nn.Module | None
        interpolate: bool
        use_conv_transpose: bool

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **given: Any) -> Tensor:
        is_usual = self.interpolate and self.norm is None and not self.use_conv_transpose
        conv = self.conv if is_usual and output_size is None else None
        if isinstance(conv, PictureConv) and conv.saves_doubling(hidden_states):
            return conv.doubled(hidden_states)
        return super().forward(hidden_states, output_size, *args, **given)


class ResidualBlock(_Module):
    """diffusers' ResnetBlock2D, whose maps are changed where they lie: a new one for each sum and activation
    takes memory, and the time to get it."""

    if TYPE_CHECKING:
        norm1: nn.Module
        norm2: nn.Module
        conv1: nn.Module
        conv2: nn.Module
        conv_shortcut: nn.Module | None
        time_emb_proj: nn.Module | None
        upsample: object
        downsample: object
        output_scale_factor: float
        skip_time_act: bool
        time_embedding_norm: str

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **given: Any) -> Tensor:
        if not is_free(input_tensor) or not self._is_usual(temb):
            return super().forward(input_tensor, temb, *args, **given)
        if are_halves_alike(self, input_tensor, temb):
            half = len(input_tensor) // 2
            return twice(self._computed(input_tensor[:half], None if temb is None else temb[:half]))
        return self._computed(input_tensor, temb)

    def _computed(self, input_tensor: Tensor, temb: Tensor | None) -> Tensor:
        x: Tensor = self.conv1(F.silu(self.norm1(input_tensor), inplace=True))
        if temb is not None and self.time_emb_proj is not None:
            x.add_(self.time_emb_proj(F.silu(temb))[:, :, None, None])
        x = self.conv2(F.silu(self.norm2(x), inplace=True))
        return x.add_(input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))

    def _is_usual(self, temb: Tensor | None) -> bool:
        """Whether the block is one of those that Stable Diffusion and the autoencoders have."""
        keeps_size = self.upsample is None and self.downsample is None and self.output_scale_factor == 1
        takes_time = (temb is None) == (self.time_emb_proj is None) and not self.skip_time_act
        adds_time = self.time_embedding_norm == "default" or (
            temb is None and self.time_embedding_norm == "group"  # as the autoencoders' blocks call it
        )
        return keeps_size and takes_time and adds_time and not self.training


class SelfAttention(_Module):
    """diffusers' Attention, where it attends to its own input."""

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Tensor:
        is_own = all(value is None for value in (*args, *given.values()))
        if is_own and is_free(hidden_states) and are_halves_alike(self, hidden_states):
            return twice(super().forward(hidden_states[: len(hidden_states) // 2]))
        return super().forward(hidden_states, *args, **given)


class PictureTransformer(_Module):
    """diffusers' Transformer2DModel, whose pictures keep their channels last: each convolution behind it
    would bring them into that order again."""

    if TYPE_CHECKING:
        proj_out: nn.Module
        use_linear_projection: bool

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        if not is_free(hidden_states) or not is_channels_last(hidden_states.dtype):
            given = (hidden_states, residual, batch_size, height, width, inner_dim)
            return super()._get_output_for_continuous_inputs(*given)  # pyright: ignore
        x = self.proj_out(hidden_states) if self.use_linear_projection else hidden_states
        x = x.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        return (x if self.use_linear_projection else self.proj_out(x)).add_(residual)


class DoublingSequence(_Sequential):
    """Layers of which some double the pixels for a convolution behind them."""

    def forward(self, input: Tensor) -> Tensor:
        waiting = list(self)
        while waiting:
            layer = waiting.pop(0)
            conv = waiting[0] if waiting and doubles(layer) else None
            if isinstance(conv, PictureConv) and conv.saves_doubling(input):
                input = conv.doubled(input)
                del waiting[0]
            else:
                input = layer(input)
        return input


def is_free(input: Tensor) -> bool:
    """Whether the layer may compute as it likes."""
    return input.device.type == "cpu" and not torch.is_grad_enabled()


def _pixels(input: Tensor) -> int:
    return input.shape[-2] * input.shape[-1]


def doubles(layer: nn.Module) -> bool:
    """Whether a layer doubles each pixel in both directions."""
    is_nearest = isinstance(layer, nn.Upsample) and layer.mode in ("nearest", "nearest-exact")
    return is_nearest and layer.scale_factor in (2.0, (2.0, 2.0))


def _is_last(kernel: Tensor) -> bool:
    return kernel.is_contiguous(memory_format=torch.channels_last)


def convolved(input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of 3×3, of each pixel and its neighbours, in the fastest way."""
    if _pixels(input) < SMALL * len(kernel):
        return _product(input, kernel, bias)
    if winograd.saves(input, len(kernel)):
        return winograd.convolved(input, kernel, bias)
    return F.conv2d(input, kernel, bias, padding=1)


def _product(input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A plain convolution of 3×3 as one product of matrices."""
    batch, channels, height, width = input.shape
    if not _is_last(kernel):
        made = kernel.flatten(1) @ F.unfold(input, 3, padding=1)
        made = made.view(batch, -1, height, width)
        return made if bias is None else made.add_(bias[:, None, None])
    seen = F.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    rows = seen.permute(0, 1, 2, 4, 5, 3).reshape(batch * height * width, 9 * channels)
    made = F.linear(rows, kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1), bias)
    return made.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _halved_kernel(kernel: Tensor, row: int, column: int) -> Tensor:
    """(out, in, 3, 3) → (out, in, 2, 2): what makes one of the four new pixels of the picture as it was."""
    down, across = (kernel.new_tensor(_LOOKS_AT[place]) for place in (row, column))
    sums = torch.einsum("ia,jb->ijab", down, across).reshape(4, 9)
    if not _is_last(kernel):
        return (kernel.reshape(*kernel.shape[:2], 9) @ sums.T).view(*kernel.shape[:2], 2, 2)
    taps = kernel.permute(0, 2, 3, 1).reshape(len(kernel), 9, -1)
    return (sums @ taps).view(len(kernel), 2, 2, -1).permute(0, 3, 1, 2)
