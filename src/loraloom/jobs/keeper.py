"""Keeps a worker at hand: starts it, and starts another when it has ended, after pauses that grow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.job import Request
from loraloom.jobs.notices import Limits
from loraloom.jobs.place import Maker, Place
from loraloom.workflow.graph import JSON

_LONGEST_PAUSE = 15.0


class WorkerKeeper:
    """One worker at a time.

    info: what the worker says of itself, or {"error": why there is none}. declared: the node classes that it
    brings along, in its own form.
    """

    def __init__(
        self, make: Maker, limits: Limits, log: Callable[[str], object], started: Callable[[], None]
    ) -> None:
        """started: called when a worker is ready."""
        self._make, self._limits, self.log, self._started = make, limits, log, started
        self.info: Mapping[str, JSON] = {}
        self.declared: JSON = None
        self.worker: Place | None = None
        self._ready = asyncio.Event()
        self._failures = 0
        self._told: str | None = None

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def ready(self) -> Place:
        """A worker that has said that it is ready, started anew until there is one."""
        while self.worker is None or not self.worker.alive:
            self._ready.clear()
            if self._failures:
                await asyncio.sleep(min(_LONGEST_PAUSE, 0.25 * 2 ** min(self._failures, 8)))
            self._failures += 1
            try:
                reason = await self._start()
            except (OSError, ValueError) as error:
                reason = str(error) or type(error).__name__
            if reason is not None:
                self.info = {"error": f"the worker could not start: {reason}"}
                if reason != self._told:  # once, and again only when something changes
                    self.log(f"the worker could not start: {reason}\n")
                self._told = reason
                continue
            self._failures, self._told = 0, None
            self._ready.set()
            self._started()
        return self.worker

    async def check(self, request: Request, seconds: float) -> JSON:
        """What the nodes themselves object to in a request. Raises TimeoutError without an answer."""
        worker = await self.settled(seconds)
        if worker is None:
            raise TimeoutError("there is no worker")
        return await worker.ask({"request": request.to_json()}, seconds)

    async def declare(self, seconds: float) -> None:
        """Have the worker say anew which node classes it brings along; nothing when it does not answer."""
        if self.worker is None or not self.is_ready or not self.declared:
            return
        try:
            self.declared = await self.worker.ask({}, seconds) or self.declared
        except TimeoutError:
            return

    async def settled(self, seconds: float) -> Place | None:
        """The worker, once it is ready; None when it cannot start, or not within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not self._ready.is_set() and "error" not in self.info:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return None
        return self.worker if self._ready.is_set() else None

    async def kill(self) -> None:
        if self.worker is not None:
            await self.worker.kill()

    async def close(self) -> None:
        """Let the worker end by itself; one that has not begun to work has nothing to finish."""
        if self.worker is not None:
            await (self.worker.close() if self.is_ready else self.worker.kill())

    async def _start(self) -> str | None:
        """Start a worker; None when it is ready, else why it is not."""
        worker = self.worker = await self._make()
        try:
            async with asyncio.timeout(self._limits.start):
                frame = await worker.receive()
        except TimeoutError:
            await worker.kill()
            return f"it did not say that it was ready within {self._limits.start:g} s"
        except (BrokenFrame, ValueError) as error:
            await worker.kill()
            return f"it sent something that cannot be read ({error})"
        if frame is None:
            return await worker.gone()
        return await self._greeted(worker, frame)

    async def _greeted(self, worker: Place, frame: Frame) -> str | None:
        said = frame[0]
        if said.get("kind") == "refused":
            await worker.kill()
            return str(said.get("reason"))
        if said.get("kind") != "ready":
            await worker.kill()
            return f"its first message is {str(said.get('kind'))[:40]!r}, expected 'ready'"
        info = said.get("worker")
        self.info = cast("Mapping[str, JSON]", info) if isinstance(info, dict) else {}
        self.declared = said.get("declared")
        return None
