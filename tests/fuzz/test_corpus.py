"""Every input that once made a reader fail is read or refused by now."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from loraloom.errors import LoraloomError
from tests.fuzz.__main__ import CORPUS, SLOW_SECONDS, mutated
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_once_failed(path: Path) -> None:
    begun = time.monotonic()
    try:
        TARGETS[path.parent.name].run(path.read_bytes())
    except LoraloomError as error:
        assert str(error)
    assert time.monotonic() - begun < SLOW_SECONDS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read_and_a_few_mutations_of_them_do_no_harm(name: str) -> None:
    target, rng = TARGETS[name], random.Random(1)
    seeds = [*target.seeds()]
    assert seeds
    for content in [*seeds, *(mutated(rng.choice(seeds), seeds, target, rng) for _ in range(40))]:
        try:
            target.run(content)
        except LoraloomError as error:
            assert str(error)
