"""Runs several graphs that take turns (`turns`), so that what they all come to can be done for all at once.

One node of one graph runs at a time, so that runs may share what is for one run at a time: the cache, and
services.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue
from typing import Any, TypeAlias

from loraloom.engine.events import Event, RunFailed
from loraloom.turns import Turns

Inside: TypeAlias = Callable[[], AbstractContextManager[object]]
Start: TypeAlias = Callable[[Inside], Iterator[Event]]
"""Begins a run whose nodes run inside a context (`engine.run.run`); may raise where it cannot begin."""

Told: TypeAlias = tuple[int, Event]
"""The number of a run, and what happened in it."""


def run_together(
    turns: Turns[Any, Any],
    starts: Sequence[Start],
    cancelled: Sequence[Callable[[], bool]],
    inside: Inside,
) -> Generator[Told]:
    """The events of all runs as they happen; each run ends with the event that says how, whatever becomes of
    the others. cancelled: whether a run was stopped. inside: what all of them run in.

    Closing the iterator stops all runs."""
    told: SimpleQueue[Told | int] = SimpleQueue()
    abandoned = threading.Event()
    threads = [
        threading.Thread(
            target=_pump,
            args=(
                number,
                start,
                _taking_part(turns, number, _either(abandoned.is_set, cancelled[number]), inside),
                lambda number=number: turns.leave(number),
                told,
            ),
            name=f"loraloom-row-{number}",
            daemon=True,
        )
        for number, start in enumerate(starts)
    ]
    for thread in threads:
        thread.start()
    going = len(threads)
    try:
        while going:
            what = told.get()
            if isinstance(what, int):
                going -= 1
            else:
                yield what
    finally:
        abandoned.set()
        for thread in threads:
            thread.join()


def _either(first: Callable[[], bool], second: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: first() or second()


def _taking_part(
    turns: Turns[Any, Any], number: int, cancelled: Callable[[], bool], inside: Inside
) -> Inside:
    @contextmanager
    def taking_part() -> Generator[None]:
        with turns.taking_part(number, cancelled), inside():
            yield

    return taking_part


def _pump(
    number: int, start: Start, inside: Inside, leave: Callable[[], None], told: SimpleQueue[Told | int]
) -> None:
    """Hand on a run's events, in a thread of its own. The run itself sees that it was stopped."""
    try:
        for event in start(inside):
            told.put((number, event))
    except BaseException as error:  # noqa: BLE001 - it is the end of this run alone
        told.put((number, RunFailed(error)))
    finally:
        leave()
        told.put(number)
