"""Latent nodes on values."""

from __future__ import annotations

import torch
from torch import Tensor

from loraloom.nodes import latent_batches, latents
from loraloom.nodes.sockets import LatentValue


def latent(*shape: int) -> LatentValue:
    count = torch.Size(shape).numel()
    return {"samples": torch.arange(float(count)).reshape(shape)}


def samples(value: LatentValue) -> Tensor:
    return value["samples"]


def index(value: LatentValue) -> list[int]:
    return value.get("batch_index", [])


def mask(value: LatentValue) -> Tensor:
    return value.get("noise_mask", torch.empty(0))


def test_upscale_sizes_are_pixels_and_zero_keeps_proportions() -> None:
    small = latent(1, 4, 8, 16)
    up = latents.upscale_latent(samples=small, upscale_method="bislerp", width=256, height=0, crop="disabled")
    assert samples(up).shape == (1, 4, 16, 32)
    same = latents.upscale_latent(samples=small, upscale_method="area", width=0, height=0, crop="disabled")
    assert same is small
    assert samples(latents.upscale_latent_by(small, "nearest-exact", 1.3)).shape == (1, 4, 10, 21)


def test_rotation_is_clockwise_and_flips_mirror() -> None:
    square = {"samples": torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]}
    turned = samples(latents.rotate_latent(square, "90 degrees"))  # type: ignore[arg-type]
    assert turned[0, 0].tolist() == [[3.0, 1.0], [4.0, 2.0]]
    upside_down = samples(latents.flip_latent(square, "x-axis: vertically"))  # type: ignore[arg-type]
    assert upside_down[0, 0].tolist() == [[3.0, 4.0], [1.0, 2.0]]


def test_crop_moves_the_corner_so_that_64_pixels_remain() -> None:
    cropped = samples(latents.crop_latent(latent(1, 1, 16, 16), 64, 64, 4096, 32))
    assert cropped.shape == (1, 1, 8, 8)
    assert cropped[0, 0, 0, 0] == 4 * 16 + 8


def test_composite_feathers_inner_edges_only() -> None:
    below = {"samples": torch.zeros(1, 1, 8, 8)}
    above = {"samples": torch.ones(1, 1, 4, 4)}
    hard = samples(latents.composite_latents(below, above, 16, 16))  # type: ignore[arg-type]
    assert hard.sum() == 16 and hard[0, 0, 2, 2] == 1
    corner = samples(latents.composite_latents(below, above, 0, 0, 16))  # type: ignore[arg-type]
    assert corner[0, 0, :4, 0].tolist() == [1.0, 1.0, 1.0, 0.5]
    assert corner[0, 0, 3, 3] == 0.25
    over = samples(latents.composite_latents(below, above, 48, 48))  # type: ignore[arg-type]
    assert over.sum() == 4


def test_masked_composite() -> None:
    below, above = latent(1, 1, 4, 4), {"samples": torch.full((1, 1, 2, 2), -1.0)}
    shown = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    out = samples(latents.composite_latents_masked(below, above, 8, 8, False, shown))  # type: ignore[arg-type]
    assert out[0, 0, 1:3, 1:3].tolist() == [[-1.0, 6.0], [9.0, 4.5]]
    assert torch.equal(samples(below), samples(latent(1, 1, 4, 4)))


def test_arithmetic() -> None:
    a, b = latent(1, 2, 2, 2), {"samples": torch.ones(1, 2, 2, 2)}
    assert torch.equal(samples(latents.add_latents(a, b)), samples(a) + 1)  # type: ignore[arg-type]
    assert torch.equal(samples(latents.subtract_latents(a, b)), samples(a) - 1)  # type: ignore[arg-type]
    assert torch.equal(samples(latents.multiply_latent(a, 2.0)), samples(a) * 2)
    torch.testing.assert_close(samples(latents.interpolate_latents(a, b, 1.0)), samples(a))  # type: ignore[arg-type]
    half = samples(latents.blend_latents(a, b, 0.5))  # type: ignore[arg-type]
    assert torch.equal(half, samples(a) / 2 + 0.5)


def test_concatenating_and_cutting() -> None:
    a, b = latent(2, 1, 2, 2), {"samples": torch.full((1, 1, 2, 2), 9.0)}
    beside = samples(latents.concatenate_latents(a, b, "-x"))  # type: ignore[arg-type]
    assert beside.shape == (2, 1, 2, 4) and beside[1, 0, 0].tolist() == [9.0, 9.0, 4.0, 5.0]
    assert samples(latents.cut_latent(latent(1, 1, 1, 8), "x", -3, 2)).flatten().tolist() == [5.0, 6.0]
    assert samples(latents.cut_latent(latent(1, 1, 1, 8), "x", 7, 5)).flatten().tolist() == [7.0]


def test_batches_remember_their_noise() -> None:
    batch = latent(3, 1, 1, 1)
    taken = latent_batches.latents_from_batch(batch, 1, 5)
    assert index(taken) == [1, 2] and samples(taken).flatten().tolist() == [1.0, 2.0]
    repeated = latent_batches.repeat_latents(taken, 2)
    assert index(repeated) == [1, 2, 3, 4]
    joined = latent_batches.join_latents(batch, taken)
    assert index(joined) == [0, 1, 2, 1, 2]
    fixed = latent_batches.set_seed_behavior(taken, "fixed")
    assert index(fixed) == [1, 1]
    assert "batch_index" not in latent_batches.set_seed_behavior(fixed, "random")


def test_masks_follow_their_latents() -> None:
    batch: LatentValue = {**latent(2, 1, 1, 1), "noise_mask": torch.tensor([[[0.0]], [[1.0]]])}
    assert mask(latent_batches.latents_from_batch(batch, 1, 1)).tolist() == [[[1.0]]]
    assert mask(latent_batches.repeat_latents(batch, 2)).flatten().tolist() == [0, 1, 0, 1]
    masked = latents.set_noise_mask(latent(1, 4, 2, 2), torch.ones(16, 16))
    assert mask(masked).shape == (1, 16, 16)


def test_rebatching_keeps_sizes_apart() -> None:
    parts = [latent(3, 1, 2, 2), latent(2, 1, 2, 2), latent(1, 1, 4, 4)]
    batches = latent_batches.rebatch_latents(latents=parts, batch_size=[2])
    assert [tuple(samples(b).shape[:3]) for b in batches] == [(2, 1, 2), (2, 1, 2), (1, 1, 2), (1, 1, 4)]
    assert [index(b) for b in batches] == [[0, 1], [2, 3], [4], [5]]
    assert all("noise_mask" not in b for b in batches)
