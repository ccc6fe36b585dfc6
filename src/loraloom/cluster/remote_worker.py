"""A worker on another machine as the queue sees it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, cast

from loraloom.cluster.incoming import Incoming
from loraloom.cluster.shared_files import Offer
from loraloom.errors import LoraloomError
from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.messages import describe
from loraloom.jobs.publishing import discard
from loraloom.workflow.graph import JSON

Send = Callable[[Mapping[str, JSON]], None]
_UNHEARD_SECONDS = 30.0
"""Of a worker that is ended after so long it is not known whether itself or the way to it was to blame."""
_FINAL = ("completed", "failed", "cancelled")


class RemoteWorker:
    """Files that its job makes are held back with the messages that name them, until the job ends: its result
    and its files are committed together. Temporary ones come at once."""

    def __init__(self, send: Send, incoming: Incoming, offer: Offer | None = None) -> None:
        """send: gives an order to the driver. offer: files of this machine that jobs name."""
        self.name = uuid.uuid4().hex
        self.last_sign = self._heard = time.monotonic()
        self._send, self._incoming, self._offer = send, incoming, offer
        self._said: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        self._answers: dict[str, asyncio.Future[JSON]] = {}
        self._held: list[dict[str, Any]] = []
        self._files: list[tuple[str, str]] = []
        self._given: list[tuple[str, str]] = []
        self._leaving: JSON = None  # the job that is about to be sent
        self._reason: str | None = None
        self._lost = False

    @property
    def alive(self) -> bool:
        return self._reason is None

    @property
    def out_of_reach(self) -> bool:
        return self._lost

    async def send(self, message: Mapping[str, JSON]) -> None:
        if message["order"] == "run":
            await self._send_job(message)
        elif message["order"] == "cancel" and message["job"] == self._leaving:
            self._leaving = None
        else:
            self._send({"order": "to", "worker": self.name, "message": dict(message)})

    async def _send_job(self, message: Mapping[str, JSON]) -> None:
        """Send a job with what its files hold, which takes its time for large ones."""
        self._forget()
        job = self._leaving = message["job"]
        request = cast("dict[str, Any]", message["request"])
        try:
            offered = (
                [] if self._offer is None else await asyncio.to_thread(self._offer.of, request["prompt"])
            )
        except (OSError, LoraloomError) as error:
            self._said.put_nowait(({"kind": "failed", "job": job, "error": describe(error)}, b""))
            return
        if self._leaving != job:
            self._said.put_nowait(({"kind": "cancelled", "job": job, "node": None, "executed": []}, b""))
            return
        self._leaving = None
        self._send(
            {
                "order": "to",
                "worker": self.name,
                "message": {**message, "files": [file.to_json() for file, _ in offered]},
                "paths": {file.digest: str(path.absolute()) for file, path in offered},
            }
        )

    async def receive(self) -> Frame | None:
        said = await self._said.get()
        if isinstance(said, Exception):
            raise BrokenFrame(f"{type(said).__name__}: {said}") from said
        return said

    async def ask(self, message: Mapping[str, JSON], seconds: float) -> JSON:
        name = uuid.uuid4().hex
        answer = self._answers[name] = asyncio.get_running_loop().create_future()
        order: dict[str, JSON] = {"order": "ask", "worker": self.name, "to": name, "seconds": seconds}
        try:
            self._send({**order, "message": dict(message)})
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            del self._answers[name]

    async def kill(self) -> None:
        if self.alive:
            self._send({"order": "kill", "worker": self.name})
            self.ended("it was ended", lost=time.monotonic() - self._heard > _UNHEARD_SECONDS)

    async def gone(self) -> str:
        return self._reason or "it ended"

    # ---- What the driver tells ----

    def heard(self, message: Mapping[str, Any], tail: bytes) -> None:
        """Something that the driver says of this worker."""
        self._heard = time.monotonic()
        match message["kind"]:
            case "alive":
                self.last_sign = time.monotonic() - float(message["silent"])
            case "answer":
                answer = self._answers.get(str(message["to"]))
                if answer is not None and not answer.done():
                    answer.set_result(message["answer"])
            case "ended":
                self.ended(str(message["reason"]), lost=bool(message["lost"]))
            case _:
                try:
                    self._take(dict(message["message"]), message["files"], tail)
                except (LoraloomError, OSError, LookupError, TypeError, ValueError) as error:
                    self._said.put_nowait(error)

    def ended(self, reason: str, *, lost: bool) -> None:
        """It has ended, or its machine is not heard of any more (lost)."""
        if self._reason is None:
            self._reason, self._lost = reason, lost
            self._forget()
            self._said.put_nowait(None)

    def _take(self, message: dict[str, Any], files: list[Any], tail: bytes) -> None:
        if not self.alive:
            discard([(staged, "") for _, staged in files])
            return
        passing = [(entry, staged) for entry, staged in files if entry["type"] == "temp"]
        lasting = [(entry, staged) for entry, staged in files if entry["type"] == "output"]
        message = self._incoming.temporary(message, passing)
        message, names = self._incoming.promised(message, lasting)
        if names:
            self._files += names
            self._held.append(message)
            return
        if message["kind"] in _FINAL:
            message |= {"held": self._held, "publish": self._files}
            self._held, self._files, self._given = [], [], self._files
        self._said.put_nowait((cast("dict[str, JSON]", message), tail))

    def _forget(self) -> None:
        """What a job made that never ended is thrown away; what the one before made has its names."""
        discard(self._files)
        self._incoming.settled([*self._files, *self._given])
        self._held, self._files, self._given = [], [], []
