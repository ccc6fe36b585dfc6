"""Layers that choose how to compute give what the plain ones give, with less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from loraloom.weights import picture_layers
from loraloom.weights.less_work import kernel_format
from loraloom.weights.picture_layers import (
    DoublingSequence,
    PictureConv,
    ResidualBlock,
    Upsampler,
    is_channels_last,
)
from tests.weights.compared import chosen, close, filled, work

ORDERS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sides", [(4, 6), (1, 1), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_small_picture_is_multiplied(
    order: torch.memory_format, sides: tuple[int, int], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = filled(nn.Conv2d(8, 128, 3, padding=1, bias=bias))
    layer = chosen(nn.Sequential(plain), order)[0]
    assert isinstance(layer, PictureConv)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # were it a convolution, it would fail
    x = torch.randn(2, 8, *sides)
    monkeypatch.undo()
    expected = plain(x)
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    close(layer(x), expected)
    close(layer(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 64, 3),
        nn.Conv2d(8, 64, 1),
        nn.Conv2d(8, 64, 3, padding=1, stride=2),
        nn.Conv2d(8, 64, 3, padding=1, groups=2),
        nn.Conv2d(8, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 64, 5, padding=2),
    ],
)
def test_other_convolutions_stay_what_they_are(layer: nn.Conv2d) -> None:
    plain, x = filled(layer), torch.randn(1, 8, 5, 5)
    assert torch.equal(chosen(nn.Sequential(plain))(x), plain(x))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("height", "width"), [(6, 4), (5, 7), (1, 16)])
def test_doubled_pixels_are_seen_once(order: torch.memory_format, height: int, width: int) -> None:
    plain = filled(Upsample2D(6, use_conv=True, out_channels=5))
    layer = chosen(plain, order)
    assert isinstance(layer, Upsampler)
    x = torch.randn(2, 6, height, width)
    close(layer(x), plain(x))


def test_large_pictures_take_four_ninths_of_the_work() -> None:
    plain = filled(Upsample2D(8, use_conv=True))
    x = torch.randn(1, 8, 64, 64)
    layer = chosen(plain)
    assert work(lambda: layer(x)) / work(lambda: plain(x)) == pytest.approx(4 / 9, abs=0.02)


def test_a_wanted_size_is_made() -> None:
    plain, x = filled(Upsample2D(6, use_conv=True)), torch.randn(1, 6, 8, 8)
    assert torch.equal(chosen(plain)(x, (15, 16)), plain(x, (15, 16)))


def test_hooks_of_the_convolution_see_the_doubled_picture() -> None:
    layer, seen = chosen(filled(Upsample2D(6, use_conv=True))), list[torch.Size]()
    layer.conv.register_forward_hook(lambda module, given, output: seen.append(given[0].shape))
    layer(torch.randn(1, 6, 8, 8))
    assert seen == [(1, 6, 16, 16)]


@pytest.mark.parametrize("order", ORDERS)
def test_sequences_that_double(order: torch.memory_format) -> None:
    plain = filled(
        nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
        )
    )
    layer, x = chosen(plain, order), torch.randn(1, 4, 9, 8)
    assert isinstance(layer, DoublingSequence)
    close(layer(x), plain(x))
    assert work(lambda: layer(x)) < work(lambda: plain(x))


@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize("width", [8, 16])
def test_residual_blocks_change_their_own_maps_only(time: bool, width: int) -> None:
    plain = filled(
        ResnetBlock2D(
            in_channels=8,
            out_channels=width,
            groups=4,
            temb_channels=6 if time else None,  # pyright: ignore[reportArgumentType]
        )
    ).eval()
    layer = chosen(plain)
    assert isinstance(layer, ResidualBlock)
    x, embedded = torch.randn(2, 8, 12, 12), torch.randn(2, 6) if time else None
    before = x.clone(), None if embedded is None else embedded.clone()
    close(layer(x, embedded), plain(x, embedded))
    assert torch.equal(x, before[0])
    if not time:  # as the autoencoders have them
        plain.time_embedding_norm = layer.time_embedding_norm = "group"  # pyright: ignore
        with torch.profiler.profile() as profile:
            close(layer(x, None), plain(x, None))
        assert sum(event.name == "aten::div" for event in profile.events() or ()) == 1  # the plain one's
    assert embedded is None or torch.equal(embedded, before[1])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("other", [{"up": True}, {"down": True}, {"output_scale_factor": 2.0}])
def test_other_residual_blocks_stay_what_they_are(other: dict[str, Any]) -> None:
    plain = filled(ResnetBlock2D(in_channels=8, groups=4, temb_channels=6, **other)).eval()
    x, embedded = torch.randn(2, 8, 12, 12), torch.randn(2, 6)
    close(chosen(plain)(x, embedded), plain(x, embedded))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("linear", [True, False])
def test_transformers_keep_the_order_of_pictures(
    linear: bool, order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs is the processor's: what is behind need not bring them into it."""
    plain = filled(
        Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=8,
            norm_num_groups=4,
            cross_attention_dim=6,
            use_linear_projection=linear,
        )
    ).eval()
    layer, text = chosen(plain, order), torch.randn(2, 3, 6)
    x = torch.randn(2, 8, 6, 4).contiguous(memory_format=order)
    before = x.clone()
    for last in (True, False):
        monkeypatch.setattr(picture_layers, "is_channels_last", lambda dtype, last=last: last)  # pyright: ignore
        made = layer(x, encoder_hidden_states=text, return_dict=False)[0]
        close(made, plain(x, encoder_hidden_states=text, return_dict=False)[0])
        assert torch.equal(x, before)
        if last and order == torch.channels_last:
            assert made.is_contiguous(memory_format=torch.channels_last)


def test_with_gradients_nothing_is_chosen() -> None:
    plain = filled(Upsample2D(6, use_conv=True))
    layer, x = chosen(plain), torch.randn(1, 6, 8, 8)
    with torch.enable_grad():
        assert work(lambda: layer(x)) == work(lambda: plain(x))


@pytest.mark.parametrize(("capability", "last"), [("AVX512", True), ("AVX2", True), ("DEFAULT", False)])
def test_the_order_is_the_processors(capability: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    is_channels_last.cache_clear()
    layer, cpu = chosen(nn.Sequential(nn.Conv2d(2, 2, 3)))[0], torch.device("cpu")
    try:
        expected = torch.channels_last if last else torch.contiguous_format
        assert kernel_format(layer, torch.float32, cpu) == expected
        assert kernel_format(layer, torch.float32, torch.device("meta")) == torch.contiguous_format
        assert kernel_format(nn.Conv2d(2, 2, 3), torch.float32, cpu) == torch.contiguous_format
    finally:
        picture_layers.is_channels_last.cache_clear()


@pytest.mark.parametrize("sides", [(5, 5), (40, 40)])
def test_a_picture_decides_and_not_its_batch(sides: tuple[int, int]) -> None:
    layer, x = chosen(nn.Sequential(filled(nn.Conv2d(6, 200, 3, padding=1)))), torch.randn(5, 6, *sides)
    assert work(lambda: layer(x)) == 5 * work(lambda: layer(x[:1]))
    close(layer(x)[:1], layer(x[:1]))
