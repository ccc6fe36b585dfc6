"""Autoencoders of films give of one picture what the plain ones give, with less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageCausalConv3d,
    QwenImageResidualBlock,
    QwenImageRMS_norm,
)
from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import (
    AutoencoderKLQwenImage21,
    QwenImage21CausalConv3d,
)
from torch import Tensor, nn

from loraloom.weights.frame_layers import (
    FilmAutoencoder,
    FrameConv,
    FrameNorm,
    FrameResidualBlock,
    OneFrameConv,
)
from tests.weights.compared import chosen, close, filled, work


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def test_one_frame_is_a_picture() -> None:
    plain = filled(QwenImageCausalConv3d(6, 8, 3, padding=1))
    layer, x = chosen(plain), torch.randn(1, 6, 1, 9, 8)
    assert isinstance(layer, FrameConv) and isinstance(layer, QwenImageCausalConv3d)
    close(layer(x), plain(x))
    assert work(lambda: layer(x)) * 3 == work(lambda: plain(x))


def test_several_frames_and_kept_ones_are_a_film() -> None:
    plain = filled(QwenImageCausalConv3d(6, 8, 3, padding=1))
    layer, one, three = chosen(plain), torch.randn(1, 6, 1, 9, 8), torch.randn(1, 6, 3, 9, 8)
    assert torch.equal(layer(three), plain(three))
    assert torch.equal(layer(one, three[:, :, :2]), plain(one, three[:, :, :2]))
    every_other = filled(QwenImageCausalConv3d(6, 8, (3, 1, 1), stride=(2, 1, 1), padding=(0, 0, 0)))
    assert torch.equal(chosen(every_other)(three), every_other(three))


@pytest.mark.parametrize(("taps", "width"), [(3, 8), (3, 400), (1, 8)])
def test_frames_of_models_for_pictures(taps: int, width: int) -> None:
    plain = filled(QwenImage21CausalConv3d(6, width, taps, padding=taps // 2))
    layer, x = chosen(plain), torch.randn(1, 6, 1, 9, 8)
    assert isinstance(layer, OneFrameConv)
    close(layer(x), plain(x))
    with pytest.raises(ValueError, match="cannot take a feature cache"):
        layer(x, x)


@pytest.mark.parametrize("images", [True, False])
def test_norms_change_their_own_maps_only(images: bool) -> None:
    plain = filled(QwenImageRMS_norm(6, images=images))
    layer, x = chosen(plain), torch.randn(2, 6, *(() if images else (1,)), 5, 4)
    assert isinstance(layer, FrameNorm)
    x[:, :, ..., 0, 0] = 0  # without a direction
    before = x.clone()
    close(layer(x), plain(x))
    assert torch.equal(x, before) and not layer(x)[..., 0, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_narrow_types_are_as_exact(dtype: torch.dtype) -> None:
    plain = filled(QwenImageRMS_norm(96, images=False))
    narrow = plain.to(dtype)
    layer, x = chosen(narrow), (torch.randn(1, 96, 1, 32, 32) * 3).to(dtype)
    exact = plain.double()(x.double())

    def error(made: Tensor) -> float:
        return float((made.double() - exact).norm() / exact.norm())

    assert layer(x).dtype == dtype
    assert error(layer(x)) <= 1.1 * error(chosen(plain.to(dtype))(x))


@pytest.mark.parametrize("width", [6, 8])
def test_residual_blocks_of_frames(width: int) -> None:
    plain = filled(QwenImageResidualBlock(6, width)).eval()
    layer, x = chosen(plain), torch.randn(1, 6, 1, 9, 8)
    assert isinstance(layer, FrameResidualBlock)
    before = x.clone()
    close(layer(x), plain(x))
    assert torch.equal(x, before)
    kept: list[list[Any]] = [[None] * 3, [None] * 3]
    close(layer(x, kept[0], [0]), plain(x, kept[1], [0]))
    assert [value is None for value in kept[0]] == [value is None for value in kept[1]]


def autoencoder(kind: type[nn.Module]) -> nn.Module:
    sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "attn_scales": []}
    more: dict[str, Any] = {"temperal_downsample": [False, True]}
    if kind is AutoencoderKLQwenImage21:
        more |= {"decoder_base_dim": 8, "patch_size": None}
    return filled(kind(**sizes, **more)).eval()


@pytest.mark.parametrize("kind", [AutoencoderKLQwenImage, AutoencoderKLQwenImage21])
def test_a_picture_is_decoded_and_encoded_with_nothing_kept(kind: type[nn.Module]) -> None:
    plain: Any = autoencoder(kind)
    free: Any = chosen(plain)
    assert FilmAutoencoder in type(free).__mro__
    latent = torch.randn(1, 4, 1, 4, 6)
    picture = torch.tanh(torch.randn(1, plain.encoder.conv_in.in_channels, 1, 16, 24))
    close(free.decode(latent).sample, plain.decode(latent).sample)
    close(free.encode(picture).latent_dist.mode(), plain.encode(picture).latent_dist.mode())
    kept: list[Any] = []
    free.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append(kwargs["feat_cache"]), with_kwargs=True
    )
    free.decode(latent)
    assert kept == [None]


def test_a_film_is_decoded_as_ever() -> None:
    plain: Any = autoencoder(AutoencoderKLQwenImage)
    free: Any = chosen(plain)
    latent = torch.randn(1, 4, 3, 4, 6)
    for given in (latent[:, :, :1], latent, latent[:, :, :1]):
        close(free.decode(given).sample, plain.decode(given).sample)
