"""Areas, masks, strengths and ranges of conditionings: what reaches the network, and how it adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.conditions import Entry, bounds, entry_of, prepared
from loraloom.sampling.denoiser import Evaluation
from loraloom.sampling.types import Cond, Conditioning, SampleContext
from tests.sampling.toy import NEGATIVE, Toy, noise, toy

SIGMA = torch.tensor(2.0)


def cond(value: float, tokens: int = 77, **options: object) -> Cond:
    return Cond(torch.full((1, tokens, 8), value), options=options)


def context(height: int, width: int) -> SampleContext:
    latent = torch.zeros(1, 4, height, width)
    return SampleContext(noise=latent, latent=latent)


def evaluate(network: Toy, x: Tensor, sigma: Tensor = SIGMA, **sides: Conditioning) -> list[Tensor]:
    given = {name: (side, name) for name, side in sides.items()}
    entries = prepared(network, given, SampleContext(noise=x, latent=x))
    return Evaluation(network, entries)(x, sigma, tuple(sides), ())


def entry(options: Mapping[str, object]) -> Entry:
    return entry_of(toy(), Cond(torch.zeros(1, 77, 8), options=options), context(16, 16))


def test_areas_in_latent_units_and_in_shares() -> None:
    assert entry({"area": (4, 6, 2, 3)}).area == (4, 6, 2, 3)
    assert entry({"area": ("percentage", 0.5, 0.25, 0.5, 0.125)}).area == (8, 4, 8, 2)
    assert entry({"area": (16, 16, 8, 8)}).area == (8, 8, 8, 8)
    assert entry({"area": ("percentage", 0.01, 0.01, 0.0, 0.0)}).area == (1, 1, 0, 0)
    assert entry({}).area is None


def test_areas_are_eights_of_pixels_whatever_a_latent_pixel_stands_for() -> None:
    wide = replace(toy(), latent_pixels=16)
    assert entry_of(wide, cond(0.0, area=(32, 16, 0, 16)), context(16, 16)).area == (16, 8, 0, 8)
    with pytest.raises(InputError, match="row 512, column 0, outside the picture of 256x256"):
        entry_of(wide, cond(0.0, area=(4, 4, 64, 0)), context(16, 16))


def test_an_area_outside_the_picture_says_so() -> None:
    with pytest.raises(InputError, match=r"row 128.*128x128"):
        entry({"area": (4, 4, 16, 0)})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"area": (1, 2)}, "height, width"), ({"strength": "much"}, "number"), ({"mask": "all"}, "tensor")],
)
def test_options_of_a_wrong_kind_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        entry(options)


def test_bounds_of_a_mask() -> None:
    mask = torch.zeros(2, 32, 32)
    mask[0, 10:22, 4:15] = 0.5
    mask[1, 12, 20] = 1
    assert bounds(mask) == (12, 17, 10, 4)
    assert bounds(torch.zeros(1, 32, 32)) == (8, 8, 0, 0)


def test_mask_bounds_become_the_area() -> None:
    mask = torch.zeros(1, 128, 128)
    mask[:, 64:128, 0:64] = 1
    found = entry({"mask": mask, "set_area_to_bounds": True})
    assert found.area == (8, 8, 8, 0)
    assert found.mask is not None
    assert found.mask.shape == (1, 16, 16)


def test_a_range_of_the_run() -> None:
    p = toy().parametrisation
    ranged = entry({"start_percent": 0.2, "end_percent": 0.6})
    assert not ranged.active(p.percent_to_sigma(0.1))
    assert ranged.active(p.percent_to_sigma(0.4))
    assert not ranged.active(p.percent_to_sigma(0.7))
    assert entry({}).active(1e9)
    assert entry({"start_percent": 0.0, "end_percent": 1.0}).active(p.sigma_max)


def test_two_conditionings_average_by_strength() -> None:
    x = noise(1)
    (one,), (two,) = (evaluate(toy(), x, a=(c,)) for c in (cond(0.5), cond(-1.0)))
    (both,) = evaluate(toy(), x, a=(cond(0.5, strength=3.0), cond(-1.0)))
    torch.testing.assert_close(both, (3 * one + two) / 4)
    (alone,) = evaluate(toy(), x, a=(cond(0.5, strength=0.2),))
    torch.testing.assert_close(alone, one)


def test_masks_divide_the_picture() -> None:
    x, left = noise(1, 1, 4, 16, 16), torch.zeros(1, 16, 16)
    left[..., :8] = 1
    (one,), (two,) = (evaluate(toy(), x, a=(c,)) for c in (cond(0.5), cond(-1.0)))
    (both,) = evaluate(toy(), x, a=(cond(0.5, mask=left), cond(-1.0, mask=1 - left, mask_strength=0.3)))
    torch.testing.assert_close(both[..., :8], one[..., :8])
    torch.testing.assert_close(both[..., 8:], two[..., 8:])


def test_a_default_counts_where_the_others_leave_room() -> None:
    network, x, left = toy(), noise(1, 1, 4, 16, 16), torch.zeros(1, 16, 16)
    left[..., :8], left[..., 8:12] = 1, 0.25
    (one,), (two,) = (evaluate(toy(), x, a=(c,)) for c in (cond(0.5), cond(-1.0)))
    default = cond(-1.0, default=True, strength=5.0)
    (both,) = evaluate(network, x, a=(default, cond(0.5, mask=left)))
    torch.testing.assert_close(both[..., :8], one[..., :8])
    torch.testing.assert_close(both[..., 8:12], (one * 0.25 + two * 0.75)[..., 8:12])
    torch.testing.assert_close(both[..., 12:], two[..., 12:])
    (area,) = evaluate(toy(), x, a=(cond(0.5, area=(16, 8, 0, 0)), default))
    torch.testing.assert_close(area[..., 8:], two[..., 8:])
    torch.testing.assert_close(area[..., :6], one[..., :6])
    torch.testing.assert_close(area[..., 7], (one * 0.5 + two * 0.5)[..., 7])


def test_a_default_without_room_is_not_evaluated() -> None:
    network, x = toy(), noise(1)
    (found,) = evaluate(network, x, a=(cond(0.5), cond(-1.0, default=True)))
    assert network.calls == [(1, 77)]
    torch.testing.assert_close(found, evaluate(toy(), x, a=(cond(0.5),))[0])
    (alone,) = evaluate(toy(), x, a=(cond(0.5, start_percent=0.9), cond(-1.0, default=True)))
    torch.testing.assert_close(alone, evaluate(toy(), x, a=(cond(-1.0),))[0])


def test_an_area_is_evaluated_alone_and_fades_into_the_rest() -> None:
    network, x = toy(), noise(1, 1, 4, 64, 64)
    (base,), (inner,) = (evaluate(toy(), x, a=(c,)) for c in (cond(0.5), cond(-1.0)))
    area = (32, 32, 0, 32)
    (both,) = evaluate(network, x, a=(cond(0.5), cond(-1.0, area=area)))
    assert sorted(network.calls) == [(1, 77), (1, 77)]
    torch.testing.assert_close(both[..., 40:, :], base[..., 40:, :])
    torch.testing.assert_close(both[..., 0:24, 40:], (base + inner)[..., 0:24, 40:] / 2)
    weight = torch.arange(1, 9) / 8
    expected = (base[..., 0, 32:40] + weight * inner[..., 0, 32:40]) / (1 + weight)
    torch.testing.assert_close(both[..., 0, 32:40], expected)


def test_the_other_side_is_compared_on_the_same_area() -> None:
    network, ctx = toy(), context(32, 32)
    area = (16, 16, 0, 0)
    sides = prepared(
        network,
        {
            "positive": ((cond(0.5), cond(1.0, area=area, strength=2.0)), "positive"),
            "negative": (NEGATIVE, "negative"),
        },
        ctx,
    )
    negative = sides["negative"]
    assert [found.area for found in negative] == [None, area]
    assert negative[1].strength == 2.0
    assert torch.equal(negative[1].inputs.tokens["context"].values, NEGATIVE[0].context)
    assert len(sides["positive"]) == 2


def test_the_smallest_surrounding_area_is_the_opposite() -> None:
    network, ctx = toy(), context(32, 32)
    inner = (8, 8, 4, 4)
    sides = prepared(
        network,
        {
            "positive": ((cond(1.0, area=inner),), "positive"),
            "negative": (
                (cond(0.1), cond(0.2, area=(16, 16, 0, 0)), cond(0.3, area=(20, 20, 0, 0))),
                "negative",
            ),
        },
        ctx,
    )
    added = [found for found in sides["negative"] if found.area == inner]
    assert len(added) == 1
    assert float(added[0].inputs.tokens["context"].values.mean()) == pytest.approx(0.2)


def test_both_sides_run_in_one_batch() -> None:
    network = toy()
    evaluate(network, noise(1, 2, 4, 8, 8), positive=(cond(0.5),), negative=(cond(0.1),))
    assert network.calls == [(4, 77)]


def test_contexts_of_different_lengths_are_repeated_to_one_length() -> None:
    network, x = toy(), noise(1)
    long, short = evaluate(network, x, positive=(cond(0.5, 154),), negative=(cond(0.1, 77),))
    assert network.calls == [(2, 154)]
    (alone,) = evaluate(toy(), x, negative=(cond(0.1, 77),))
    torch.testing.assert_close(short, alone)
    assert not torch.equal(long, short)


def test_lengths_too_far_apart_run_alone() -> None:
    network = toy()
    evaluate(network, noise(1), positive=(cond(0.5, 77 * 5),), negative=(cond(0.1, 77),))
    assert sorted(network.calls) == [(1, 77), (1, 385)]


def test_extra_channels_are_cropped_with_the_area() -> None:
    network, x = toy(), noise(1, 1, 4, 32, 32)
    extra = noise(2, 1, 4, 32, 32)
    area = (16, 16, 8, 8)
    (found,) = evaluate(network, x, a=(cond(0.5, area=area, concat=extra),))
    whole = evaluate(toy(), x, a=(cond(0.5, concat=extra),))[0]
    torch.testing.assert_close(found[..., 8:24, 8:24], whole[..., 8:24, 8:24])
    assert float(found[..., 0, 0].abs().max()) == 0


def test_nothing_active_predicts_zero() -> None:
    (found,) = evaluate(toy(), noise(1), a=(cond(0.5, start_percent=0.9),))
    assert found.count_nonzero() == 0


def test_batches_of_contexts_meet_their_latents() -> None:
    network, x = toy(), noise(1).repeat(2, 1, 1, 1)
    both = Cond(torch.stack([torch.full((77, 8), 0.5), torch.full((77, 8), -1.0)]))
    (found,) = evaluate(network, x, a=(both,))
    for i, value in enumerate((0.5, -1.0)):
        torch.testing.assert_close(found[i : i + 1], evaluate(toy(), x[:1], a=(cond(value),))[0])
