"""Schedules equal the reference's, and keep their promises at the edges."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

import pytest
import torch

from loraloom.errors import InputError
from loraloom.sampling.parametrisation import Discrete
from loraloom.sampling.samplers.registry import method, sampler, sampler_names
from loraloom.sampling.schedules import (
    align_your_steps,
    between,
    exponential,
    karras,
    laplace,
    polyexponential,
    schedule,
    schedule_names,
    sd_turbo,
    sigmas_for,
    variance_preserving,
)
from tests.sampling.toy import KINDS, PARITY

FIGURES = json.loads(gzip.decompress((PARITY / "sigmas.json.gz").read_bytes()))
SD = Discrete("eps")


def test_names_stand_in_the_editors_order() -> None:
    assert list(sampler_names()) == FIGURES["samplers"]
    assert list(schedule_names()) == FIGURES["schedulers"]


def test_a_name_is_registered_once() -> None:
    """The message names both functions; the first keeps the name."""
    before = method("euler").function, sigmas_for(SD, "karras", 4)

    def second(*_: object, **__: object) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match=r"samplers are called 'euler': .*euler\.euler, .*\.second, line"):
        sampler("euler")(second)
    with pytest.raises(ValueError, match=r"called 'karras': .*schedules\..*, .*\.second, line"):
        schedule("karras")(second)
    assert method("euler").function is before[0] and torch.equal(sigmas_for(SD, "karras", 4), before[1])


@pytest.mark.parametrize("case", FIGURES["sigmas"])
def test_sigmas_equal_the_reference(case: str) -> None:
    kind, name, steps, denoise = case.split("/")
    sigmas = sigmas_for(KINDS[kind][0], name, int(steps), float(denoise))
    torch.testing.assert_close(sigmas, torch.tensor(FIGURES["sigmas"][case]), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_schedules_are_finite_and_descend_to_zero(kind: str, name: str, steps: int) -> None:
    sigmas = sigmas_for(KINDS[kind][0], name, steps)
    assert torch.isfinite(sigmas).all()
    assert sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()


def test_no_denoise_means_no_steps() -> None:
    assert sigmas_for(SD, "karras", 20, 0.0).numel() == 0


def test_a_sampler_may_want_the_last_level_left_out() -> None:
    plain, dropped = sigmas_for(SD, "karras", 7), sigmas_for(SD, "karras", 6, method=method("uni_pc"))
    assert torch.equal(dropped, torch.cat([plain[:-2], plain[-1:]]))
    assert len(sigmas_for(SD, "karras", 6, 0.5, method=method("dpm_2"))) == 7


def test_unknown_schedule_is_named() -> None:
    with pytest.raises(InputError, match=r"'karas'.*karras"):
        sigmas_for(SD, "karas", 20)


def test_between() -> None:
    sigmas = sigmas_for(SD, "karras", 10)
    assert torch.equal(between(sigmas, 0, 10000), sigmas)
    assert torch.equal(between(sigmas, 3), sigmas[3:])
    assert torch.equal(between(sigmas, 2, 5, full_denoise=False), sigmas[2:6])
    full = between(sigmas, 2, 5)
    assert full[-1] == 0
    assert torch.equal(full[:-1], sigmas[2:5])
    assert between(sigmas, 10).numel() == 0
    assert sigmas[5] > 0


def test_polyexponential_of_degree_one_is_exponential() -> None:
    torch.testing.assert_close(polyexponential(9, 0.03, 14.6, 1.0), exponential(9, 0.03, 14.6))


def test_karras_is_even_in_its_own_coordinate() -> None:
    roots = karras(12, 0.03, 14.6, 5.0)[:-1] ** (1 / 5)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(11), rtol=1e-4, atol=1e-6)


def test_variance_preserving_ends_at_its_smallest_time() -> None:
    sigmas = variance_preserving(5, 19.9, 0.1, 1e-3)
    assert float(sigmas[0]) == pytest.approx(math.sqrt(math.exp(19.9 / 2 + 0.1) - 1), rel=1e-5)
    assert sigmas[-1] == 0


def test_laplace_stays_in_range() -> None:
    sigmas = laplace(20, 0.03, 14.6, 0.0, 0.5)
    assert sigmas.min() >= 0.03
    assert sigmas.max() <= 14.61
    assert (sigmas.diff() <= 0).all()


def test_sd_turbo_takes_every_hundredth_level() -> None:
    sigmas = sd_turbo(SD, 2)
    torch.testing.assert_close(sigmas, torch.tensor([float(SD.sigmas[999]), float(SD.sigmas[899]), 0.0]))
    assert len(sd_turbo(SD, 1, 0.5)) == 2
    assert float(sd_turbo(SD, 1, 0.5)[0]) == pytest.approx(float(SD.sigmas[499]))


def test_align_your_steps_interpolates_its_table() -> None:
    sigmas = align_your_steps("SD1", 10)
    assert float(sigmas[0]) == pytest.approx(14.615, abs=1e-3)
    assert sigmas[-1] == 0
    assert len(sigmas) == 11
    assert len(align_your_steps("SDXL", 20, 0.5)) == 11
    assert align_your_steps("SVD", 20, 0.0).numel() == 0
    with pytest.raises(InputError, match="SD1"):
        align_your_steps("SD9", 10)
