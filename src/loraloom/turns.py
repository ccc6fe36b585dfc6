"""Threads that take turns: one runs at a time, until each of them waits for something to be done together.

A thread that asks for something gives its turn to the next. Once all that have not left wait, one of them
answers: for as many of the others at once as it likes, and not necessarily for all. Between two answers
everything that the threads share is used by one of them alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from loraloom.errors import Cancelled

Asked = TypeVar("Asked")
Given = TypeVar("Given")

_State: TypeAlias = Literal["ready", "running", "waiting", "left"]

_seat: ContextVar[tuple[Turns[Any, Any], int] | None] = ContextVar("loraloom_turns", default=None)


class Turns(Generic[Asked, Given]):
    """So many participants, by number, all of which will take part or leave.

    answer: the questions of those that wait, in the order of their numbers → what each is given, an exception
    to be raised where something went wrong; at least one of them is answered.
    """

    def __init__(
        self, count: int, answer: Callable[[Mapping[int, Asked]], Mapping[int, Given | BaseException]]
    ) -> None:
        self._answer = answer
        self._states: list[_State] = ["ready"] * count
        self._cancelled: list[Callable[[], bool]] = [lambda: False] * count
        self._asked: dict[int, Asked] = {}
        self._given: dict[int, Given | BaseException] = {}
        self._changed = threading.Condition()
        self._turn: int | None = 0 if count else None

    @contextmanager
    def taking_part(self, number: int, cancelled: Callable[[], bool] = lambda: False) -> Generator[None]:
        """Run what is inside as a participant, which leaves at the end. cancelled: asked between answers;
        once it holds, `ask` raises Cancelled."""
        self._cancelled[number] = cancelled
        token = _seat.set((self, number))
        try:
            self._await_turn(number)
            yield
        finally:
            _seat.reset(token)
            self.leave(number)

    def is_here(self) -> bool:
        """Whether the caller takes part."""
        seat = _seat.get()
        return seat is not None and seat[0] is self

    def number(self) -> int:
        """The caller's number. LookupError for those that take no part."""
        seat = _seat.get()
        if seat is None or seat[0] is not self:
            raise LookupError("no participant asks")
        return seat[1]

    def ask(self, asked: Asked) -> Given:
        """What is given for a question, once the caller's turn has come again. Raises what went wrong, and
        Cancelled where the caller was cancelled meanwhile."""
        number = self.number()
        self._asked[number] = asked
        self._pass_on(number, "waiting")
        while True:
            self._await_turn(number)
            if number in self._given:
                break
            if self._cancelled[number]():
                del self._asked[number]
                raise Cancelled("the run was stopped")
            self._answer_all(number)
        given = self._given.pop(number)
        if isinstance(given, BaseException):
            raise given
        return given

    def leave(self, number: int) -> None:
        """Take no part any more; also for one that never came."""
        if self._states[number] == "running":
            self._pass_on(number, "left")
        else:
            with self._changed:
                was_next = self._turn == number
                self._states[number] = "left"
                if was_next:
                    self._choose()

    def _answer_all(self, number: int) -> None:
        """Answer some of those that wait, then pass on."""
        asked = {i: self._asked[i] for i in sorted(self._asked)}
        try:
            given = self._answer(asked)
        except BaseException as error:  # noqa: BLE001 - raised by all that wait for it
            given = dict.fromkeys(asked, error)
        for i, what in given.items():
            self._given[i] = what
            del self._asked[i]
        self._pass_on(number, "waiting")

    def _await_turn(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number)
            self._states[number] = "running"

    def _pass_on(self, number: int, state: _State) -> None:
        with self._changed:
            self._states[number] = state
            self._choose()

    def _choose(self) -> None:
        """Whose turn is next: of one that can go on, else of one that answers."""
        waiting = [i for i, state in enumerate(self._states) if state == "waiting"]
        ready = [i for i, state in enumerate(self._states) if state == "ready" or i in self._given]
        stopped = [i for i in waiting if self._cancelled[i]()]
        self._turn = next(iter((*ready, *stopped, *waiting)), None)
        self._changed.notify_all()
