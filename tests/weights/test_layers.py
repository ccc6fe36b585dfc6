"""Layers around quantised weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from loraloom.weights.formats import formats
from loraloom.weights.layers import PackedConv2d, PackedEmbedding, PackedLinear, join_low_rank, packed_layer
from loraloom.weights.packed import Packed, narrowed, packed_as
from loraloom.weights.storage.fp8 import widened_floats

EVERY_BYTE = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_value_is_widened_exactly(stored: torch.dtype, dtype: torch.dtype) -> None:
    values = EVERY_BYTE.view(stored)
    expected = values.to(dtype)
    assert int(expected.isfinite().sum()) >= 248
    torch.testing.assert_close(widened_floats(values, dtype), expected, rtol=0, atol=0, equal_nan=True)
    transposed = values.view(16, 16).t()
    torch.testing.assert_close(
        widened_floats(transposed[::3], dtype), expected.view(16, 16).t()[::3], rtol=0, atol=0, equal_nan=True
    )
    assert widened_floats(values[:0], dtype).shape == (0,)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "scale", [None, torch.tensor([0.25]), torch.rand(6) + 0.5], ids=["no", "one", "rows"]
)
def test_forward_is_that_of_the_widened_weight(bias: bool, scale: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    layer = packed_layer(torch.nn.Linear(8, 6, bias=bias), torch.float32, native=True)
    assert isinstance(layer, PackedLinear)
    stored = torch.randn(6, 8).to(torch.float8_e4m3fn)
    parts = {"weight": stored} if scale is None else {"weight": stored, "scale": scale}
    layer.hold(Packed.of("fp8", parts, {}, (6, 8)))
    pairs = [(torch.randn(2, 8), torch.randn(6, 2)), (torch.randn(3, 8), torch.randn(6, 3))]
    layer.low_rank = join_low_rank(pairs, torch.float32)
    weight = stored.float() * (1.0 if scale is None else scale.reshape(-1, 1))
    weight = weight + sum(up @ down for down, up in pairs)
    x = torch.randn(4, 8)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_products_in_float16_stay_in_its_range() -> None:
    """Stored values fill the range of their type, and scales may be too small for float16."""
    stored, x = torch.full((4, 512), 448.0), torch.full((1, 512), 30.0)
    for scale in (1e-4, 3e-7):
        packed = Packed.of(
            "fp8",
            {"weight": stored.to(torch.float8_e4m3fn), "scale": torch.tensor(scale)},
            {},
            (4, 512),
        )
        y = packed.product(x.half(), native=True)
        torch.testing.assert_close(y.float(), x @ stored.T * scale, rtol=2e-3, atol=0)


def test_an_embedding_widens_the_rows_that_are_asked_for() -> None:
    layer = packed_layer(torch.nn.Embedding(9, 8), torch.bfloat16, native=True)
    assert isinstance(layer, PackedEmbedding) and layer.num_embeddings == 9
    stored = torch.randn(9, 8).to(torch.float8_e4m3fn)
    layer.hold(Packed.of("fp8", {"weight": stored, "scale": torch.rand(9, 1) + 0.5}, {}, (9, 8)))
    tokens = torch.tensor([[8, 0, 8], [1, 1, 2]])
    found = layer(tokens)
    assert found.dtype == torch.bfloat16 and torch.equal(found, layer.weight[tokens])
    layer.merge(torch.ones(9, 8))
    assert torch.equal(layer(tokens), torch.ones(2, 3, 8))


@pytest.mark.parametrize("flat", [False, True], ids=["as it is", "stored as a matrix"])
def test_a_convolution_widens_its_kernel(flat: bool) -> None:
    plain = torch.nn.Conv2d(4, 6, 1 if flat else 3, padding=0 if flat else 1)
    layer = packed_layer(plain, torch.float32, native=True)
    assert isinstance(layer, PackedConv2d)
    stored = torch.randn(plain.weight.shape).to(torch.float8_e5m2)
    kept = stored.flatten(1) if flat else stored
    layer.hold(Packed.of("fp8", {"weight": kept, "scale": torch.tensor(0.5)}, {}, tuple(kept.shape)))
    x = torch.randn(2, 4, 5, 5)
    wanted = F.conv2d(x, stored.float() * 0.5, plain.bias, padding=plain.padding)
    torch.testing.assert_close(layer(x), wanted)


def test_other_layers_stay_what_they_are() -> None:
    for module in (torch.nn.LayerNorm(4), torch.nn.Conv3d(1, 1, 1), torch.nn.Embedding(3, 2, max_norm=1.0)):
        assert packed_layer(module, torch.float32, native=True) is None
    assert packed_layer(torch.nn.Linear(2, 2).eval(), torch.float32, native=True).training is False  # pyright: ignore[reportOptionalMemberAccess]


def test_a_layer_without_values_says_so() -> None:
    layer = packed_layer(torch.nn.Linear(2, 2), torch.float32, native=True)
    assert layer is not None
    with pytest.raises(RuntimeError, match="before it was filled"):
        layer(torch.ones(1, 2))


def test_what_is_stored_moves_with_the_layer_and_keeps_its_type() -> None:
    layer = packed_layer(torch.nn.Linear(8, 6), torch.float32, native=True)
    assert layer is not None
    parts = {"weight": torch.randn(6, 8).to(torch.float8_e4m3fn), "scale": torch.tensor(0.5)}
    layer.hold(Packed.of("fp8", parts, {}, (6, 8)))
    layer.low_rank = torch.ones(2, 8), torch.ones(6, 2)
    wanted = layer(torch.ones(1, 8))
    torch.nn.Sequential(layer).to(torch.bfloat16).float()
    assert layer.packed is not None and layer.packed.stored.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(layer(torch.ones(1, 8)), wanted, rtol=1e-2, atol=1e-2)  # the bias was rounded
    torch.nn.Sequential(layer).to("meta")
    assert {part.device.type for part in (*layer.packed.parts.values(), *layer.low_rank)} == {"meta"}


@pytest.mark.parametrize("scaled", [False, True])
def test_products_in_8_bits_round_the_input(scaled: bool) -> None:
    """torch multiplies so on the CPU, too, though nobody would want to wait for it."""
    values = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) / 8
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    packed = packed_as(formats()["fp8"], values) if scaled else narrowed(values.to(torch.float8_e4m3fn))
    assert packed is not None
    plain, fast = packed.product(x, native=True), packed.multiplied().product(x, native=True)
    rounded = packed.product(x.to(torch.float8_e4m3fn).to(x.dtype), native=True)
    torch.testing.assert_close(fast, rounded, rtol=1e-2, atol=1e-2)
    assert not torch.equal(fast, plain)
    uneven = narrowed(values[:, :40].to(torch.float8_e4m3fn))  # of a size that no device's code takes
    x = x[..., :40]
    assert torch.equal(uneven.multiplied().product(x, native=True), uneven.product(x, native=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("to", ["fp8", "fp8:e5m2", "mxfp8", "nvfp4", "int8", "int8:convrot64"])
def test_a_wide_copy_gives_the_same_products_to_the_bit(to: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    name, _, option = to.partition(":")
    packed, x = packed_as(formats()[name], torch.randn(64, 128), option), torch.randn(5, 128).to(dtype)
    assert packed is not None
    for native in (True, False):
        layer = packed_layer(torch.nn.Linear(128, 64, bias=True).to(dtype), dtype, native)
        assert isinstance(layer, PackedLinear)
        layer.hold(packed)
        before, values, held = layer(x), layer.weight, layer.stored_bytes
        rounds = native and name == "int8"  # inputs are rounded: there is nothing to widen
        assert layer.widen() == (not rounds) and not layer.widen()
        assert torch.equal(layer(x), before) and torch.equal(layer.weight, values)
        if not rounds:
            assert layer.stored_bytes >= held + layer.wide_bytes == held + 64 * 128 * dtype.itemsize
        assert layer.drop_wide() == (not rounds)
        assert layer.stored_bytes == held and torch.equal(layer(x), before)
        layer.widen()
        layer.hold(packed)
        assert layer.wide is None
