"""A worker on another machine as the queue sees it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from loraloom.cluster.incoming import Incoming
from loraloom.cluster.shared_files import Offer, SharedFile
from loraloom.errors import LoraloomError
from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.messages import describe
from loraloom.jobs.orders import ENDS, RUN, Entry, jobs_of, order_of, rows_of
from loraloom.jobs.publishing import discard
from loraloom.workflow.graph import JSON

Send = Callable[[Mapping[str, JSON]], None]
_UNHEARD_SECONDS = 30.0
"""Of a worker that is ended after so long it is not known whether itself or the way to it was to blame."""


class RemoteWorker:
    """Files that a job makes are held back with the messages that name them, until the job ends: its result
    and its files are committed together. Temporary ones come at once."""

    def __init__(self, send: Send, incoming: Incoming, offer: Offer | None = None) -> None:
        """send: gives an order to the driver. offer: files of this machine that jobs name."""
        self.name = uuid.uuid4().hex
        self.last_sign = self._heard = time.monotonic()
        self._send, self._incoming, self._offer = send, incoming, offer
        self._said: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        self._answers: dict[str, asyncio.Future[JSON]] = {}
        self._held: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # by job, as the files
        self._files: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._given: list[tuple[str, str]] = []
        self._leaving: set[str] = set()  # the jobs that are about to be sent
        self._reason: str | None = None
        self._lost = False

    @property
    def alive(self) -> bool:
        return self._reason is None

    @property
    def out_of_reach(self) -> bool:
        return self._lost

    async def send(self, message: Mapping[str, JSON]) -> None:
        if message["order"] in RUN:
            await self._send_jobs(jobs_of(message), rows_of(message))
        elif message["order"] == "cancel" and message["job"] in self._leaving:
            self._leaving.remove(str(message["job"]))
        else:
            self._send({"order": "to", "worker": self.name, "message": dict(message)})

    async def _send_jobs(self, jobs: Sequence[Entry], rows: int) -> None:
        """Send jobs with what their files hold, which takes its time for large ones."""
        self._forget()
        self._leaving = {str(job["job"]) for job in jobs}
        offered = [await asyncio.to_thread(self._offered, job) for job in jobs]
        leaving: list[Entry] = []
        paths: dict[str, JSON] = {}
        for job, files in zip(jobs, offered, strict=True):
            if job["job"] not in self._leaving:
                end: dict[str, JSON] = {"kind": "cancelled", "node": None, "executed": []}
            elif isinstance(files, Exception):
                end = {"kind": "failed", "error": describe(files)}
            else:
                leaving.append({**job, "files": [file.to_json() for file, _ in files]})
                paths |= {file.digest: str(path.absolute()) for file, path in files}
                continue
            self._said.put_nowait(({**end, "job": job["job"]}, b""))
        self._leaving = set()
        if leaving:
            order = order_of(leaving, rows)
            self._send({"order": "to", "worker": self.name, "message": order, "paths": paths})

    def _offered(self, job: Entry) -> list[tuple[SharedFile, Path]] | Exception:
        """The files of this machine that a job names, or why they cannot be read."""
        request = cast("dict[str, Any]", job["request"])
        try:
            return [] if self._offer is None else self._offer.of(request["prompt"])
        except (OSError, LoraloomError) as error:
            return error

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

    async def close(self) -> None:
        await self.kill()  # what its job made is with the job, and goes with it

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
        job = str(message.get("job"))
        if names:
            self._files[job] += names
            self._held[job].append(message)
            return
        if message["kind"] in ENDS:
            made = self._files.pop(job, [])
            message |= {"held": self._held.pop(job, []), "publish": made}
            self._given += made
        self._said.put_nowait((cast("dict[str, JSON]", message), tail))

    def _forget(self) -> None:
        """What jobs made that never ended is thrown away; what those before made has its names."""
        made = [name for names in self._files.values() for name in names]
        discard(made)
        self._incoming.settled([*made, *self._given])
        self._held.clear()
        self._files.clear()
        self._given = []
