"""Sizes of buckets, and batches."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loraloom.training.buckets import MAX_RATIO, Plan, bucket_of, bucket_sizes
from loraloom.training.dataset import Example
from loraloom.training.settings import FolderSettings


@given(st.integers(64, 1536), st.sampled_from([8, 32, 64]))
def test_sizes_keep_to_pixels_steps_and_ratio(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution, step)
    square = resolution // step * step
    assert (square, square) in sizes
    for width, height in sizes:
        assert width % step == 0 and height % step == 0
        assert width * height <= resolution * resolution
        assert max(width / height, height / width) <= MAX_RATIO


def test_pictures_go_to_the_nearest_proportions() -> None:
    sizes = bucket_sizes(512, 64)
    assert bucket_of((2000, 2000), sizes) == (512, 512)
    width, height = bucket_of((1600, 900), sizes)
    assert 1.5 < width / height < 2.01
    assert bucket_of((100, 4000), sizes)[0] < bucket_of((100, 4000), sizes)[1]


def _example(repeats: int) -> Example:
    return Example(Path(), "", "", (1, 1), FolderSettings(Path()), repeats)


def test_an_epoch_holds_every_picture_as_often_as_it_repeats() -> None:
    examples = [_example(3), _example(1), _example(2)]
    plan = Plan.of(examples, [(64, 64), (64, 64), (32, 128)], batch=2, seed=1)
    for number in range(3):
        batches = plan.epoch(number)
        assert len(batches) == plan.batches_per_epoch == 3
        assert sorted(i for batch in batches for i in batch) == [0, 0, 0, 1, 2, 2]
        assert all(set(batch) in ({0}, {0, 1}, {2}) for batch in batches)
    assert plan.epoch(0) == plan.epoch(0)
