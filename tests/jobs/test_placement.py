"""Which job goes to which worker."""

from __future__ import annotations

import random

from loraloom.jobs.placement import PATIENCE, Needs, Placement, Seat, Waiting


def needs(base: str, *stack: str) -> Needs:
    return Needs(frozenset({base}), stack)


def test_a_job_goes_where_its_model_and_its_loras_are() -> None:
    waiting = [Waiting("a", 0, needs("sdxl", "hats")), Waiting("b", 0, needs("flux"))]
    seats = [
        Seat("other", needs("sd15")),
        Seat("flux", needs("flux", "cats")),
        Seat("base", needs("sdxl", "cats")),
        Seat("stack", needs("sdxl", "hats")),
    ]
    assert Placement().choose(waiting, seats) == [("a", "stack"), ("b", "flux")]
    assert Placement().choose(waiting, seats[:3]) == [("a", "base"), ("b", "flux")]


def test_a_job_whose_model_is_nowhere_goes_to_the_emptiest() -> None:
    seats = [Seat("full", needs("sd15"), 1.0), Seat("late", idle_since=9.0), Seat("early", idle_since=3.0)]
    waiting = [Waiting(name, 0, needs("flux")) for name in "abcd"]
    assert Placement().choose(waiting, seats) == [("a", "early"), ("b", "late"), ("c", "full")]


def test_a_worker_takes_the_next_job_of_its_model_first() -> None:
    waiting = [Waiting("a", 0, needs("sdxl")), Waiting("b", 0, needs("flux"))]
    assert Placement().choose(waiting, [Seat("x", needs("flux"))]) == [("b", "x")]


def test_a_higher_priority_goes_first_whatever_is_resident() -> None:
    waiting = [Waiting("urgent", 5, needs("sdxl")), Waiting("b", 0, needs("flux"))]
    assert Placement().choose(waiting, [Seat("x", needs("flux"))]) == [("urgent", "x")]


def test_nobody_is_passed_over_for_ever() -> None:
    placement, seat = Placement(), Seat("x", needs("flux"))
    passed = 0
    while True:
        waiting = [Waiting("patient", 0, needs("sdxl")), Waiting(f"b{passed}", 0, needs("flux"))]
        ((chosen, _),) = placement.choose(waiting, [seat])
        if chosen == "patient":
            break
        passed += 1
    assert passed == PATIENCE


def test_every_worker_gets_a_job_as_long_as_there_are_any() -> None:
    chance = random.Random(3)
    models = ["a", "b", "c", "d"]
    for _ in range(300):
        waiting = [
            Waiting(str(i), chance.randrange(3), needs(chance.choice(models), chance.choice("xy")))
            for i in range(chance.randrange(8))
        ]
        seats = [Seat(f"w{i}", needs(chance.choice(models))) for i in range(chance.randrange(8))]
        chosen = Placement().choose(waiting, seats)
        assert len(chosen) == min(len(waiting), len(seats))
        assert len({job for job, _ in chosen}) == len({seat for _, seat in chosen}) == len(chosen)
        lowest = min((w.priority for w in waiting if w.id in dict(chosen)), default=0)
        assert not seats or all(w.id in dict(chosen) for w in waiting if w.priority > lowest)


def test_a_job_whose_model_is_there_goes_before_one_whose_is_not_though_its_loras_are_others() -> None:
    flux = frozenset({"flux"})
    waiting = [Waiting("1", needs=Needs(frozenset({"sdxl"}))), Waiting("2", needs=Needs(flux, ("b",)))]
    assert Placement().choose(waiting, [Seat("w", Needs(flux, ("a",)))]) == [("2", "w")]
