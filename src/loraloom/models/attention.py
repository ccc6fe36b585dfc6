"""Which code computes a diffusion network's attention: PyTorch's choice, one of its kernels, or a package.

What was asked for is what computes: where it cannot (an attention mask, say, or numbers of 32 bits), that is
an error that says so, and never another kernel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from loraloom.errors import InputError
from loraloom.models.computing import ATTENTIONS, AttentionName

_KERNELS: Mapping[str, SDPBackend] = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
_DEVICES: Mapping[str, tuple[str, ...]] = {
    "flash": ("cpu", "cuda", "xpu"),
    "efficient": ("cuda",),
    "cudnn": ("cuda",),
    "flash-attn": ("cuda",),
    "sage": ("cuda",),
}
"""Where there is such code; "math" is for every device."""

_PACKAGES = {"flash-attn": "flash_attn", "sage": "sageattention"}

Compute: TypeAlias = "Callable[[Tensor, Tensor, Tensor, float | None, bool, bool], Tensor]"
"""(q, k, v (B, heads, T, D), scale, causal, grouped heads) → (B, heads, T, D)."""


def attention(name: AttentionName, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A context within which attention is computed so. InputError where it cannot be on this machine."""
    if name == "auto":
        return nullcontext
    if device.type not in _DEVICES.get(name, (device.type,)):
        fitting = [n for n in ATTENTIONS if device.type in _DEVICES.get(n, (device.type,))]
        raise InputError(f"there is no {name} attention on {device.type}; use one of {', '.join(fitting)}")
    if name in _KERNELS:
        return lambda: _Asked(name, None)
    compute = _of_package(name)
    return lambda: _Asked(name, compute)


class AttentionCalls(TorchFunctionMode):
    """Sees each call of PyTorch's attention in this thread, and computes it by `attend`."""

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        """What scaled_dot_product_attention is to give for these arguments."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(*args, **(kwargs or {}))


class _Asked(AttentionCalls):
    """Has the kernel or the package that was asked for compute it."""

    def __init__(self, name: str, compute: Compute | None) -> None:
        super().__init__()
        self._name, self._compute = name, compute

    def attend(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self._compute is not None:
            if attn_mask is not None or dropout_p:
                raise self._cannot("with an attention mask")
            if query.dtype not in (torch.float16, torch.bfloat16):
                raise self._cannot(f"in {str(query.dtype).removeprefix('torch.')}")
            return self._compute(query, key, value, scale, is_causal, enable_gqa)
        try:
            with sdpa_kernel(_KERNELS[self._name]):
                return F.scaled_dot_product_attention(
                    query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
                )
        except RuntimeError as error:
            if not any(words in str(error) for words in ("No available kernel", "No viable backend")):
                raise
            mask = "" if attn_mask is None else " with an attention mask"
            kind = str(query.dtype).removeprefix("torch.")
            raise self._cannot(f"in {kind}, heads {query.shape[-1]} wide{mask}") from error

    def _cannot(self, what: str) -> InputError:
        return InputError(f"{self._name} attention cannot compute this model's attention {what}; use auto")


def _of_package(name: str) -> Compute:
    package = _PACKAGES[name]
    try:
        module: Any = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise InputError(f"{name} attention needs the package {package}: {error}") from error

    def flash(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, grouped: bool) -> Tensor:
        del grouped  # it sees that from the shapes
        rows = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return module.flash_attn_func(*rows, softmax_scale=scale, causal=causal).transpose(1, 2)

    def sage(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, grouped: bool) -> Tensor:
        del grouped
        return module.sageattn(q, k, v, tensor_layout="HND", is_causal=causal, sm_scale=scale)

    return flash if name == "flash-attn" else sage
