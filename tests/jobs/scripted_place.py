"""A worker in this process that does as it is told, so that its machine can be lost at any moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.orders import RUN, jobs_of
from loraloom.workflow.graph import JSON

READY: Mapping[str, Any] = {"kind": "ready", "worker": {"devices": []}, "declared": None}


class ScriptedPlace:
    """Says that it is ready (or another greeting, or none); then it says what a test lets it say."""

    def __init__(self, greeting: Mapping[str, Any] | None = READY) -> None:
        self.last_sign = time.monotonic()
        self.orders: list[Mapping[str, JSON]] = []
        self.reason = ""
        self._lost = False
        self._said: asyncio.Queue[Frame | BrokenFrame | None] = asyncio.Queue()
        if greeting is not None:
            self.say(greeting)

    async def start(self) -> ScriptedPlace:
        return self

    @property
    def alive(self) -> bool:
        return not self.reason

    @property
    def out_of_reach(self) -> bool:
        return self._lost

    @property
    def jobs(self) -> list[str]:
        """The ids of the jobs that it was told to run."""
        runs = (order for order in self.orders if order["order"] in RUN)
        return [str(job["job"]) for order in runs for job in jobs_of(order)]

    def say(self, message: Mapping[str, Any]) -> None:
        self._said.put_nowait((cast("dict[str, JSON]", dict(message)), b""))

    def garble(self) -> None:
        """Say something that is no frame."""
        self._said.put_nowait(BrokenFrame("a frame holds list, expected an object"))

    def complete(self, number: int = -1, **more: Any) -> None:
        """The end of one of its jobs, by default the last."""
        self.say({"kind": "completed", "job": self.jobs[number], "executed": [], **more})

    def end(self, reason: str, *, lost: bool = False) -> None:
        self.reason, self._lost = reason, lost
        self._said.put_nowait(None)

    async def send(self, message: Mapping[str, JSON]) -> None:
        self.orders.append(message)

    async def receive(self) -> Frame | None:
        said = await self._said.get()
        if isinstance(said, BrokenFrame):
            raise said
        return said

    async def ask(self, message: Mapping[str, JSON], seconds: float) -> JSON:
        raise TimeoutError

    async def kill(self) -> None:
        if self.alive:
            self.end("it was ended", lost=self._lost)

    async def close(self) -> None:
        await self.kill()

    async def gone(self) -> str:
        return self.reason
