"""Layers on tokens give what diffusers' and PyTorch's give, with less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn

from loraloom.weights import token_layers
from loraloom.weights.less_work import with_less_work
from loraloom.weights.token_layers import PlainNorm, TokenNorm, quick
from tests.weights.compared import chosen, filled

PLAIN: Any = apply_rotary_emb


def angles(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    found = torch.rand(tokens, width // 2, generator=torch.Generator().manual_seed(0)) * 6
    return found.cos().repeat_interleave(2, 1), found.sin().repeat_interleave(2, 1)


def made(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [{}, {"sequence_dim": 1}, {"sequence_dim": 2}])
def test_the_numbers_are_those_of_diffusers(dtype: torch.dtype, given: dict[str, int]) -> None:
    x, turns = made(2, 6, 6, 8).to(dtype), angles(6, 8)
    odd = made(2, 6, 8, 6).to(dtype).transpose(2, 3)
    wanted: list[Any] = [PLAIN(one, turns, **given) for one in (x, odd)]
    before = x.clone()
    with torch.no_grad():
        found = [quick(refuse)(one, turns, **given) for one in (x, odd)]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= torch.finfo(dtype).eps * other.abs().max()
    assert torch.equal(x, before)


def refuse(*args: Any, **given: Any) -> Any:
    raise AssertionError("it was to be quick")


@pytest.mark.parametrize(
    ("turns", "given"),
    [
        (tuple(part.double() for part in angles(6, 8)), {"sequence_dim": 1}),
        (tuple(part.flip(1).cumsum(1) for part in angles(6, 8)), {"sequence_dim": 1}),  # no pairs
        (angles(6, 8), {"sequence_dim": 1, "use_real_unbind_dim": -2}),
        (torch.polar(torch.ones(1, 6, 4), torch.rand(1, 6, 4)), {"use_real": False}),
    ],
)
def test_what_is_meant_otherwise_is_left_to_diffusers(turns: Any, given: dict[str, Any]) -> None:
    x = made(1, 6, 6, 8)
    with torch.no_grad():
        assert torch.equal(quick(PLAIN)(x, turns, **given), PLAIN(x, turns, **given))
        with pytest.raises(AssertionError):
            quick(refuse)(x, turns, **given)


def test_gradients_pass() -> None:
    x, turns = made(1, 6, 3, 8).requires_grad_(), angles(6, 8)
    quick(PLAIN)(x, turns, sequence_dim=1).square().sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 2 * x)


def test_attention_of_diffusers_turns_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_flux, "apply_rotary_emb", apply_rotary_emb)
    network = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), in_channels=4,
    ).eval()  # fmt: skip
    ids = torch.rand(7, 3) * 9
    given: dict[str, Any] = {
        "hidden_states": made(1, 5, 4), "encoder_hidden_states": made(1, 2, 8),
        "pooled_projections": made(1, 8),
        "timestep": torch.tensor([0.5]), "img_ids": ids[:5], "txt_ids": ids[5:], "return_dict": False,
    }  # fmt: skip
    with torch.no_grad():
        (wanted,) = network(**given)
        with_less_work(network)
        seen: list[int] = []
        plain = token_layers.turned
        monkeypatch.setattr(
            token_layers, "turned", lambda *args, **more: seen.append(1) or plain(*args, **more)
        )
        (found,) = network(**given)
    assert len(seen) == 4 and torch.allclose(found, wanted, atol=1e-6)
    with_less_work(network)  # once is enough
    assert transformer_flux.apply_rotary_emb.__wrapped__ is apply_rotary_emb  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 7, 48), (1, 5, 3, 48), (0, 48)])
@pytest.mark.parametrize(
    ("plain", "choice"),
    [
        (RMSNorm(48, eps=1e-6), TokenNorm),
        (nn.RMSNorm(48, eps=1e-6), PlainNorm),
        (nn.RMSNorm(48, eps=1e-6, elementwise_affine=False), PlainNorm),
        (RMSNorm(48, eps=1e-6, bias=True), TokenNorm),
        (RMSNorm(48, eps=1e-6, elementwise_affine=False), TokenNorm),
        (nn.RMSNorm(48), PlainNorm),
    ],
)
def test_norms_are_those_of_the_libraries(
    plain: nn.Module, choice: type, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain = filled(plain).to(dtype)
    layer, x = chosen(plain), (made(*shape) * 3).to(dtype)
    assert isinstance(layer, choice) and isinstance(layer, type(plain))
    before = x.clone()
    with torch.no_grad():
        found, wanted = layer(x), plain(x)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(x, before)


def test_norms_with_gradients_or_other_types_are_the_libraries_own() -> None:
    plain = filled(RMSNorm(8, eps=1e-6))
    layer, x = chosen(plain), made(3, 8)
    with torch.no_grad():
        assert torch.equal(layer(x.bfloat16()), plain(x.bfloat16()))
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
