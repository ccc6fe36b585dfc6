"""The attention that was asked for computes, or an error says why not."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import InputError
from loraloom.models.attention import attention
from loraloom.models.computing import ATTENTIONS, AttentionName, Computing

CPU = torch.device("cpu")


def rows(dtype: torch.dtype = torch.float32, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 24, wide, dtype=dtype) for wide in (16, 16, width))
    return query, key, value


def test_names_are_checked() -> None:
    with pytest.raises(InputError, match="no such attention: 'fast'; use one of auto, math"):
        Computing(attention="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="nothing fast is called 'sharper'; use steps, tokens, vae"):
        Computing(fast=("sharper",))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["auto", "math", "flash"])
@pytest.mark.parametrize("masked", [False, True])
def test_kernels_of_the_processor(name: AttentionName, masked: bool) -> None:
    mask = torch.randn(24, 24) if masked else None
    expected = F.scaled_dot_product_attention(*rows(), attn_mask=mask, scale=0.3)
    with attention(name, CPU)():
        given = F.scaled_dot_product_attention(*rows(), attn_mask=mask, scale=0.3)
    assert (given - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "ran"), [("math", False), ("flash", True)])
def test_it_is_that_kernel_which_runs(name: AttentionName, ran: bool) -> None:
    with torch.profiler.profile() as profile, attention(name, CPU)():
        F.scaled_dot_product_attention(*rows())
    found = any("flash_attention_for_cpu" in event.name for event in profile.events() or ())
    assert found == ran


def test_what_a_kernel_cannot_compute_is_an_error() -> None:
    with (
        pytest.raises(
            InputError, match="flash attention cannot compute .* in float32, heads 16 wide; use auto"
        ),
        attention("flash", CPU)(),
    ):
        F.scaled_dot_product_attention(*rows(width=24))


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in ("auto", "math", "flash")])
def test_other_devices_kernels_are_refused(name: AttentionName) -> None:
    with pytest.raises(InputError, match=f"no {name} attention on cpu; use one of auto, math, flash$"):
        attention(name, CPU)


@pytest.mark.parametrize(("name", "package"), [("flash-attn", "flash_attn"), ("sage", "sageattention")])
def test_packages_that_are_missing_are_named(name: AttentionName, package: str) -> None:
    with pytest.raises(InputError, match=f"{name} attention needs the package {package}"):
        attention(name, torch.device("cuda"))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages with the functions of the real ones, which need a GPU, in their documented forms."""

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None, causal: bool
    ) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale, is_causal=causal).transpose(1, 2)

    def sageattn(
        q: Tensor, k: Tensor, v: Tensor, *, tensor_layout: str, is_causal: bool, sm_scale: float | None
    ) -> Tensor:
        assert tensor_layout == "HND"
        return F.scaled_dot_product_attention(q, k, v, scale=sm_scale, is_causal=is_causal)

    for package, function in (("flash_attn", flash_attn_func), ("sageattention", sageattn)):
        module: Any = ModuleType(package)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, package, module)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ["flash-attn", "sage"])
def test_packages_are_called_as_they_document(name: AttentionName) -> None:
    halves = rows(torch.bfloat16)
    expected = F.scaled_dot_product_attention(*halves, scale=0.2, is_causal=True)
    with attention(name, torch.device("cuda"))():
        given = F.scaled_dot_product_attention(*halves, scale=0.2, is_causal=True)
        with pytest.raises(InputError, match=f"{name} attention cannot .* with an attention mask; use auto"):
            F.scaled_dot_product_attention(*halves, attn_mask=torch.zeros(24, 24))
        with pytest.raises(InputError, match="in float32"):
            F.scaled_dot_product_attention(*rows())
    assert torch.equal(given, expected)
