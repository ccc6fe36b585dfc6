"""Where jobs run, one at a time: a process of this machine, or a worker on another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from loraloom.jobs.frames import Frame
from loraloom.workflow.graph import JSON


class Place(Protocol):
    """A worker as the queue sees it. It may end at any moment.

    last_sign: when it was heard of last (`time.monotonic`).
    """

    last_sign: float

    @property
    def alive(self) -> bool: ...

    @property
    def out_of_reach(self) -> bool:
        """Its machine is not heard of any more: how it ended, if it did, is not known."""
        ...

    async def send(self, message: Mapping[str, JSON]) -> None:
        """Send an order; a worker that has ended does not get it, which `receive` tells."""
        ...

    async def receive(self) -> Frame | None:
        """What the worker says next; None when it has ended. Raises BrokenFrame for nonsense."""
        ...

    async def ask(self, message: Mapping[str, JSON], seconds: float) -> JSON:
        """The answer to a question, also while a job runs. Raises TimeoutError without one."""
        ...

    async def kill(self) -> None:
        """End the worker at once, whatever it does."""
        ...

    async def close(self) -> None:
        """Let the worker end by itself, for which it has a moment; end it where it does not."""
        ...

    async def gone(self) -> str:
        """How a worker ended that has said its last, in words."""
        ...


Maker = Callable[[], Awaitable[Place]]
"""Starts a worker. Raises OSError or ValueError with the reason when it cannot."""
