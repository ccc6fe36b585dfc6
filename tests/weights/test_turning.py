"""Pairs of channels are turned as diffusers turns them, with less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from loraloom.weights import turning
from loraloom.weights.less_work import with_less_work
from loraloom.weights.turning import quick

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
        plain = turning.turned
        monkeypatch.setattr(turning, "turned", lambda *args, **more: seen.append(1) or plain(*args, **more))
        (found,) = network(**given)
    assert len(seen) == 4 and torch.allclose(found, wanted, atol=1e-6)
    with_less_work(network)  # once is enough
    assert transformer_flux.apply_rotary_emb.__wrapped__ is apply_rotary_emb  # pyright: ignore
