"""Noise: the numbers that the reference's seeds give, without a trace in the global random state."""

from __future__ import annotations

import torch

from loraloom.sampling.noise import brownian_noise, continued_noise, initial_noise, noise_for, reseeded_noise

LATENT = torch.zeros(3, 4, 8, 8)
SIGMAS = torch.tensor([14.6, 5.0, 1.0, 0.03, 0.0])


def test_initial_noise_is_what_the_global_generator_would_draw() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        drawn = torch.randn(3, 4, 8, 8)
    assert torch.equal(initial_noise(LATENT, 123), drawn)
    assert not torch.equal(initial_noise(LATENT, 124), drawn)


def test_large_seeds_are_accepted() -> None:
    assert initial_noise(LATENT, 2**64 - 1).std() > 0.9


def test_a_latent_taken_from_a_batch_keeps_its_noise() -> None:
    one = torch.zeros(1, 4, 8, 8)
    alone = [initial_noise(one, 5, [i]) for i in range(3)]
    together = initial_noise(LATENT, 5, [0, 1, 2])
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(initial_noise(LATENT, 5, [2, 0, 2]), torch.cat([alone[2], alone[0], alone[2]]))


def test_continued_noise_goes_on_after_the_initial_noise() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.randn(3, 4, 8, 8)
        wanted = [torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)]
    draw = continued_noise(LATENT, 9)
    assert torch.equal(draw(SIGMAS[0], SIGMAS[1]), wanted[0])
    assert torch.equal(draw(SIGMAS[1], SIGMAS[2]), wanted[1])


def test_reseeded_noise_begins_with_the_initial_noise() -> None:
    draw = reseeded_noise(LATENT, 9)
    assert torch.equal(draw(SIGMAS[0], SIGMAS[1]), initial_noise(LATENT, 9))
    assert not torch.equal(draw(SIGMAS[1], SIGMAS[2]), initial_noise(LATENT, 9))


def test_brownian_noise_belongs_to_the_path_not_to_the_steps() -> None:
    x = torch.zeros(4, 4, 32, 32)
    whole = brownian_noise(x, SIGMAS, 7)(SIGMAS[0], SIGMAS[2])
    draw = brownian_noise(x, SIGMAS, 7)
    first, second = draw(SIGMAS[0], SIGMAS[1]), draw(SIGMAS[1], SIGMAS[2])
    lengths = (SIGMAS[0] - SIGMAS[1]).sqrt(), (SIGMAS[1] - SIGMAS[2]).sqrt()
    torch.testing.assert_close(
        (first * lengths[0] + second * lengths[1]) / (SIGMAS[0] - SIGMAS[2]).sqrt(), whole
    )
    assert abs(float(whole.std()) - 1) < 0.05
    assert abs(float((first * second).mean())) < 0.05


def test_brownian_noise_turns_its_sign_with_its_direction() -> None:
    draw = brownian_noise(LATENT, SIGMAS, 7)
    assert torch.equal(draw(SIGMAS[0], SIGMAS[1]), -draw(SIGMAS[1], SIGMAS[0]))


def test_preparing_noise_draws_nothing_and_needs_no_range() -> None:
    for kind in ("continued", "reseeded", "brownian", "brownian_on_device"):
        noise_for(kind, LATENT, torch.zeros(1), 1)
