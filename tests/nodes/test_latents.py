"""Latent nodes on values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.latent_format import LatentFormat
from loraloom.nodes import empty_latents, latent_batches, latents
from loraloom.nodes.sampling import fitting
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


@pytest.mark.parametrize(
    ("make", "shape", "pixels"),
    [
        (empty_latents.empty_latent, (2, 4, 8, 16), 8),
        (empty_latents.empty_sd3_latent, (2, 16, 8, 16), 8),
        (empty_latents.empty_flux2_latent, (2, 128, 4, 8), 16),
        (empty_latents.empty_radiance_latent, (2, 3, 64, 128), 1),
    ],
)
def test_empty_latents_say_how_large_their_pixels_are(
    make: Callable[[int, int, int], LatentValue], shape: tuple[int, ...], pixels: int
) -> None:
    made = make(128, 64, 2)
    assert samples(made).shape == shape
    assert made.get("downscale_ratio_spacial") == pixels


def test_layers_are_frames_behind_that_of_the_whole_picture() -> None:
    assert samples(empty_latents.empty_layered_latent(1024, 768, 2, 1)).shape == (1, 16, 3, 96, 128)


FLUX2 = LatentFormat(name="wide", channels=128, pixels=16)


def test_an_empty_latent_of_another_family_makes_as_large_a_picture() -> None:
    found = fitting(empty_latents.empty_latent(1024, 768, 2), FLUX2)
    assert found.shape == (2, 128, 48, 64)
    back = fitting(empty_latents.empty_flux2_latent(1024, 768, 1), LatentFormat(name="plain", channels=16))
    assert back.shape == (1, 16, 96, 128)
    assert fitting({"samples": torch.zeros(1, 4, 6, 6)}, FLUX2).shape == (1, 128, 6, 6)
    odd = empty_latents.empty_latent(24, 40, 1)
    assert fitting(odd, FLUX2).shape == (1, 128, 2, 2)


def test_a_latent_that_holds_a_picture_keeps_its_size_and_has_to_fit() -> None:
    whole = {"samples": torch.ones(1, 128, 6, 6), "downscale_ratio_spacial": 8}
    assert fitting(whole, FLUX2) is whole["samples"]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="has 4 channels and this model works on 128"):
        fitting({"samples": torch.ones(1, 4, 6, 6)}, FLUX2)


def test_a_single_frame_is_dropped_and_several_are_refused() -> None:
    assert fitting({"samples": torch.ones(1, 128, 1, 6, 6)}, FLUX2).shape == (1, 128, 6, 6)
    with pytest.raises(InputError, match="LatentCutToBatch"):
        fitting({"samples": torch.ones(1, 128, 3, 6, 6)}, FLUX2)
    frames = LatentFormat(name="frames", channels=16, frames=True)
    assert fitting({"samples": torch.zeros(1, 16, 3, 6, 6)}, frames).shape == (1, 16, 3, 6, 6)


def test_slices_become_a_batch() -> None:
    whole = latent(2, 1, 5, 2, 2)
    cut = samples(latents.cut_latent_to_batch(whole, "t", 1))
    assert cut.shape == (10, 1, 1, 2, 2)
    assert torch.equal(cut[3, :, 0], samples(whole)[0, :, 3])
    pairs = samples(latents.cut_latent_to_batch(whole, "t", 2))
    assert pairs.shape == (4, 1, 2, 2, 2)
    assert torch.equal(pairs[1], samples(whole)[0, :, 2:4])
    assert samples(latents.cut_latent_to_batch(whole, "x", 9)).shape == (2, 1, 5, 2, 2)
    flat = latent(1, 4, 2, 2)
    assert latents.cut_latent_to_batch(flat, "t", 1) is flat


TWO: dict[str, Callable[[LatentValue, LatentValue], LatentValue]] = {
    "composite": lambda a, b: latents.composite_latents(a, b, 8, 8, 8),
    "masked": lambda a, b: latents.composite_latents_masked(a, b, 0, 0, True, torch.ones(1, 64, 64)),
    "blend": lambda a, b: latents.blend_latents(a, b, 0.5),
    "add": latents.add_latents,
    "subtract": latents.subtract_latents,
    "interpolate": lambda a, b: latents.interpolate_latents(a, b, 0.5),
    "batch": latent_batches.join_latents,
}


@pytest.mark.parametrize("join", TWO.values(), ids=TWO.keys())
def test_latents_of_two_families_are_told(join: Callable[[LatentValue, LatentValue], LatentValue]) -> None:
    with pytest.raises(InputError, match="first latent has 16 channels, the second 4 channels"):
        join(latent(1, 16, 8, 8), latent(1, 4, 8, 8))
    with pytest.raises(InputError, match="second 16 channels and 3 frames.*LatentCutToBatch"):
        join(latent(1, 16, 8, 8), latent(1, 16, 3, 8, 8))


@pytest.mark.parametrize("join", TWO.values(), ids=TWO.keys())
@pytest.mark.parametrize("frames", [(), (3,)])
def test_latents_of_one_kind_may_differ_in_number_and_size(
    join: Callable[[LatentValue, LatentValue], LatentValue], frames: tuple[int, ...]
) -> None:
    if frames and join is TWO["composite"]:
        pytest.skip("held below")
    for first, second in (((2, 8, 6), (1, 6, 9)), ((1, 8, 6), (2, 6, 9))):
        one, other = (latent(count, 16, *frames, *size) for count, *size in (first, second))
        made = samples(join(one, other))
        assert made.shape[1:] == samples(one).shape[1:] and made.isfinite().all()


def test_side_by_side_all_else_must_be_equal() -> None:
    for other in ((1, 4, 8, 8), (1, 16, 6, 8), (1, 16, 1, 8, 8)):
        with pytest.raises(InputError, match="1×16×8×8 and .* along 'x'"):
            latents.concatenate_latents(latent(1, 16, 8, 8), latent(*other), "x")
    assert samples(latents.concatenate_latents(latent(1, 4, 8, 8), latent(1, 4, 8, 3), "-x")).shape[-1] == 11


def test_frames_are_enlarged_like_pictures() -> None:
    frames = latent(1, 4, 3, 16, 24)

    def each(change: Callable[[LatentValue], LatentValue]) -> None:
        alone = [samples(change({"samples": frame})) for frame in samples(frames).unbind(2)]
        assert torch.equal(samples(change(frames)), torch.stack(alone, dim=2))

    each(lambda one: latents.upscale_latent_by(one, "bislerp", 1.5))


def test_frames_are_comfyuis_rows_and_rows_its_columns() -> None:
    """As nodes.py has it: dimensions 2 and 3, whatever they are."""
    frames = latent(1, 4, 12, 16, 5)
    whole, above = samples(frames), torch.ones(1, 4, 12, 4, 5)
    assert torch.equal(samples(latents.flip_latent(frames, "x-axis: vertically")), whole.flip(2))
    assert torch.equal(samples(latents.flip_latent(frames, "y-axis: horizontally")), whole.flip(3))
    assert torch.equal(samples(latents.rotate_latent(frames, "90 degrees")), whole.rot90(1, (3, 2)))
    assert torch.equal(samples(latents.crop_latent(frames, 64, 64, 8, 16)), whole[:, :, 2:10, 1:9])
    expected = whole.clone()
    expected[:, :, 2:, 1:5] = above[:, :, 2:]
    assert torch.equal(samples(latents.composite_latents(frames, {"samples": above}, 8, 16, 0)), expected)
    feathered = samples(latents.composite_latents(frames, {"samples": above}, 8, 16, 8))
    assert torch.equal(feathered, expected)
    with pytest.raises(InputError, match="last sides are equal"):
        latents.composite_latents(frames, {"samples": above[..., :3]})
