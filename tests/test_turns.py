"""Participants run one at a time, are answered together, and each by itself may fail, be stopped or leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest

from loraloom.errors import Cancelled
from loraloom.turns import Turns

Answer = Callable[[Mapping[int, int]], Mapping[int, int | BaseException]]


def run(
    turns: Turns[int, int], *parts: Callable[[], None], cancelled: Mapping[int, Callable[[], bool]] = {}
) -> None:
    """Run each part in a thread of its own, all of which are given ten seconds."""

    def work(number: int, part: Callable[[], None]) -> None:
        with turns.taking_part(number, cancelled.get(number, lambda: False)):
            part()

    threads = [
        threading.Thread(target=work, args=(number, part), daemon=True) for number, part in enumerate(parts)
    ]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_all_that_wait_are_answered_at_once_and_nobody_runs_beside_another() -> None:
    rounds: list[list[int]] = []
    inside, most, found = [0], [0], dict[int, list[int]]()

    def answer(asked: Mapping[int, int]) -> Mapping[int, int]:
        rounds.append([*asked.values()])
        return {number: 10 * value for number, value in asked.items()}

    turns = Turns[int, int](3, answer)

    def part(number: int, questions: int) -> None:
        found[number] = []
        for question in range(questions):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1
            found[number].append(turns.ask(100 * number + question))

    run(turns, lambda: part(0, 1), lambda: part(1, 3), lambda: part(2, 2))
    assert rounds == [[0, 100, 200], [101, 201], [102]]
    assert found == {0: [0], 1: [1000, 1010, 1020], 2: [2000, 2010]} and most == [1]


def test_an_answer_may_leave_some_waiting() -> None:
    rounds: list[list[int]] = []

    def answer(asked: Mapping[int, int]) -> Mapping[int, int]:
        rounds.append([*asked])
        first = next(iter(asked))
        return {first: asked[first]}

    turns = Turns[int, int](2, answer)
    order: list[int] = []

    def part(number: int) -> None:
        for _ in range(2):
            turns.ask(0)
            order.append(number)

    run(turns, lambda: part(0), lambda: part(1))
    assert order == [0, 0, 1, 1] and rounds == [[0, 1], [0, 1], [1], [1]]


def test_one_that_fails_leaves_the_others_their_answers() -> None:
    turns = Turns[int, int](
        2, lambda asked: {n: ValueError("bad") if value < 0 else value for n, value in asked.items()}
    )
    seen: list[object] = []

    def bad() -> None:
        with pytest.raises(ValueError, match="bad"):
            turns.ask(-1)
        seen.append("failed")

    def good() -> None:
        seen.append(turns.ask(5))
        seen.append(turns.ask(6))

    run(turns, bad, good)
    assert sorted(map(str, seen)) == ["5", "6", "failed"]


def test_an_answer_that_fails_fails_all_who_asked() -> None:
    def answer(asked: Mapping[int, int]) -> Mapping[int, int]:
        raise RuntimeError("broken")

    turns, failed = Turns[int, int](2, answer), list[int]()

    def part() -> None:
        with pytest.raises(RuntimeError, match="broken"):
            turns.ask(1)
        failed.append(1)

    run(turns, part, part)
    assert failed == [1, 1]


def test_one_that_is_cancelled_while_it_waits_stops_before_the_next_answer() -> None:
    stop = threading.Event()

    def answer(asked: Mapping[int, int]) -> Mapping[int, int]:
        stop.set()
        return {0: 1}

    turns, seen = Turns[int, int](2, answer), list[str]()

    def going_on() -> None:
        turns.ask(0)
        turns.ask(0)
        seen.append("done")

    def cancelled() -> None:
        with pytest.raises(Cancelled):
            turns.ask(0)
        seen.append("cancelled")

    run(turns, going_on, cancelled, cancelled={1: stop.is_set})
    assert seen == ["cancelled", "done"]


def test_one_that_never_comes_is_not_waited_for() -> None:
    turns, seen = Turns[int, int](3, lambda asked: dict(asked)), list[int]()
    turns.leave(0)
    turns.leave(2)
    with turns.taking_part(1):
        seen.append(turns.ask(4))
    assert seen == [4] and not turns.is_here()
    with pytest.raises(LookupError):
        turns.ask(1)
