"""Which node is running: what a pack's code learns through the stand-in modules instead of an argument."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from loraloom.engine.node import NodeRun


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a pack's function. prefixes: for the graphs that it builds, so that their ids differ."""

    run: NodeRun
    prefixes: Iterator[int] = field(default_factory=itertools.count)


_CALL: ContextVar[Call | None] = ContextVar("loraloom_pack_call", default=None)


@contextmanager
def calling(run: NodeRun) -> Generator[None]:
    """Within, the stand-ins know this run. Concurrent async nodes each have their own."""
    token = _CALL.set(Call(run))
    try:
        yield
    finally:
        _CALL.reset(token)


def current_run() -> NodeRun | None:
    """The run of the node whose function is being called; None outside of any."""
    call = _CALL.get()
    return None if call is None else call.run


def next_prefix() -> str:
    """A prefix for node ids that the current call has not used yet."""
    call = _CALL.get()
    return f"g{0 if call is None else next(call.prefixes)}."
