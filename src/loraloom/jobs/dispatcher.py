"""Runs the queue: hands jobs to the worker one by one, keeps what comes of them, and tells who listens.

The order is always the same: first the store has committed it, then it is told. A worker that ends, hangs or
talks nonsense costs its job an attempt, never the queue.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.job import Job, Request, Status, WrongStatus
from loraloom.jobs.live import LiveJob
from loraloom.jobs.store import JobEvent, Store, UnknownJob
from loraloom.jobs.worker_process import WorkerProcess, WorkerSettings
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON

_DISK_RETRY_SECONDS = 2.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. stall: without any progress of a job. silence: without any sign of life of the worker.
    cancel: from the wish to cancel to the end of the worker, if it does not stop by itself."""

    stall: float = 1800.0
    silence: float = 120.0
    cancel: float = 20.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that has happened, for whoever listens.

    kind: "queue" (what waits or runs has changed), "worker", or the kind of a job's event.
    event: the lasting event behind it. preview: JPEG bytes.
    """

    kind: str
    job: Job | None = None
    payload: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    event: JobEvent | None = None
    preview: bytes = b""


Listener = Callable[[Notice], None]


class _WorkerEnded(Exception):
    """The worker is gone, or had to be ended; the text says why."""


class Dispatcher:
    """The queue at work. Everything runs in the event loop that called `start`."""

    def __init__(
        self,
        store: StoreThread,
        worker: WorkerSettings,
        *,
        limits: Limits | None = None,
        paused: bool = False,
        previews: str = "none",
    ) -> None:
        """previews: how pictures of unfinished work are made for jobs that do not say it themselves."""
        self._store, self._how, self._limits = store, worker, limits or Limits()
        self.paused = paused
        self._previews = previews
        self.live: LiveJob | None = None
        self.worker_info: Mapping[str, JSON] = {}
        self._worker: WorkerProcess | None = None
        self._wake = asyncio.Event()
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._last_progress = 0.0
        self._ready = asyncio.Event()
        self._cancel_by: float | None = None
        self._restarts = 0

    async def start(self) -> None:
        """Recover what a former server left running, then begin."""
        await self.call(lambda s: s.recover())
        self._wake.set()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End the worker. A job that is running will run again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._worker is not None:
            await self._worker.kill()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every notice; the function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def call(self, function: Callable[[Store], Result]) -> Result:
        """Run a function on the store; its result, committed."""
        return await asyncio.wrap_future(self._store.call(function))

    # ---- What clients ask for ----

    async def submit(
        self, request: Request, *, job_id: str | None = None, number: float | None = None,
        front: bool = False, priority: int = 0,
    ) -> Job:  # fmt: skip
        """Queue a job. Raises QueueFull or JobExists."""
        job = await self.call(
            lambda s: s.submit(request, job_id=job_id, number=number, front=front, priority=priority)
        )
        self._wake.set()
        self._tell(Notice("queue", job))
        return job

    async def cancel(self, job_id: str) -> bool:
        """Stop a waiting or running job; False if it has finished. Raises UnknownJob."""
        live = self.live
        if live is not None and live.job.id == job_id:
            await self._interrupt(live)
            return True
        try:
            job = await self.call(
                lambda s: s.change(job_id, lambda j: _waiting_only(j).stop(time.time()), [("cancelled", {})])
            )
        except WrongStatus:
            live = self.live
            if live is not None and live.job.id == job_id:
                await self._interrupt(live)
                return True
            return False
        self._tell(Notice("cancelled", job))
        self._tell(Notice("queue", job))
        return True

    async def cancel_waiting(self, job_ids: Sequence[str] | None = None) -> int:
        """Cancel waiting jobs, by default all; how many there were."""
        if job_ids is None:
            job_ids = [job.id for job in await self.call(lambda s: s.waiting())]
        count = 0
        for job_id in job_ids:
            live = self.live
            if live is not None and live.job.id == job_id:
                continue
            try:
                count += await self.cancel(job_id)
            except UnknownJob:
                continue
        return count

    async def interrupt(self, job_id: str | None = None) -> bool:
        """Stop the running job (only if it is that one); whether there was one."""
        live = self.live
        if live is None or (job_id is not None and live.job.id != job_id):
            return False
        await self._interrupt(live)
        return True

    async def retry(self, job_id: str) -> Job:
        """Queue a job again that failed, was cancelled or put aside. Raises UnknownJob, WrongStatus."""
        job = await self.call(
            lambda s: s.change(job_id, lambda j: j.retry(s.next_number()), [("retried", {})])
        )
        self._wake.set()
        self._tell(Notice("queue", job))
        return job

    async def move(self, job_id: str, number: float, priority: int) -> Job:
        """Give a waiting job another place. Raises UnknownJob, WrongStatus."""
        job = await self.call(lambda s: s.change(job_id, lambda j: j.move(number, priority)))
        self._tell(Notice("queue", job))
        return job

    def pause(self, paused: bool) -> None:
        """Start no further jobs, or go on."""
        self.paused = paused
        self._wake.set()
        self._tell(Notice("queue"))

    async def free(self, models: bool, results: bool) -> None:
        """Let the worker release models or kept results, after the job that is running."""
        if self._worker is not None:
            await self._worker.send({"order": "free", "models": models, "results": results})

    async def check(self, request: Request, seconds: float = 60.0) -> JSON:
        """What the nodes themselves object to in a request. Raises TimeoutError without an answer."""
        async with asyncio.timeout(seconds):
            await self._ready.wait()
        worker = self._worker
        if worker is None:
            raise TimeoutError("there is no worker")
        return await worker.ask({"request": request.to_json()}, seconds)

    # ---- The loop ----

    async def _work(self) -> None:
        while True:
            worker = await self._ready_worker()
            job = None if self.paused else await self._commit(lambda s: s.claim())
            if job is None:
                await self._wait_for_work()
                continue
            self.live = LiveJob(job)
            try:
                await self._run(worker, self.live)
            except _WorkerEnded as error:
                await self._lost(self.live, str(error))
            finally:
                self.live = None
            await self._commit(lambda s: s.prune())
            self._tell(Notice("queue"))

    async def _commit(self, function: Callable[[Store], Result]) -> Result:
        """Like `call`, but waits until the disk takes it: what a job gave is not thrown away."""
        while True:
            try:
                return await self.call(function)
            except sqlite3.Error as error:
                self._how.log(f"the queue cannot be written ({error}); trying again\n")
                await asyncio.sleep(_DISK_RETRY_SECONDS)

    async def _wait_for_work(self) -> None:
        """Until something was queued; a worker that ends meanwhile is noticed when the next job needs it."""
        if not self.paused and await self._commit(lambda s: s.count(Status.PENDING)):
            return
        self._wake.clear()
        if not self.paused and await self._commit(lambda s: s.count(Status.PENDING)):
            return
        await self._wake.wait()

    async def _ready_worker(self) -> WorkerProcess:
        """A worker that has said that it is ready, started anew if there is none."""
        while self._worker is None or not self._worker.alive:
            if self._restarts:
                await asyncio.sleep(min(30.0, 0.25 * 2 ** min(self._restarts, 8)))
            self._restarts += 1
            self._ready.clear()
            self._worker = await WorkerProcess.start(self._how)
            frame = await self._first_frame(self._worker)
            if frame is None or frame[0].get("kind") != "ready":
                await self._worker.kill()
                reason = await self._worker.ended()
                self.worker_info = {"error": f"the worker could not start: {reason}"}
                self._how.log(f"the worker could not start: {reason}\n")
                continue
            self._restarts = 0
            self.worker_info = cast("Mapping[str, JSON]", frame[0].get("worker") or {})
            self._ready.set()
            self._tell(Notice("worker"))
        return self._worker

    async def _first_frame(self, worker: WorkerProcess) -> Frame | None:
        try:
            async with asyncio.timeout(self._limits.stall):
                return await worker.receive()
        except (TimeoutError, BrokenFrame, ValueError):
            return None

    async def _run(self, worker: WorkerProcess, live: LiveJob) -> None:
        job = live.job
        self._cancel_by = None
        self._last_progress = time.monotonic()
        self._tell(Notice("started", job, event=live.add("started", {"attempt": job.claims})))
        self._tell(Notice("queue", job))
        asked = job.request.extra_data.get("preview_method")
        method = self._previews if asked in (None, "default") else str(asked)
        previews = "" if method == "none" else method
        await worker.send(
            {"order": "run", "job": job.id, "request": job.request.to_json(), "previews": previews}
        )
        while True:
            message, tail = await self._next(worker)
            if message.get("job") != job.id:
                continue
            kind = str(message["kind"])
            if kind in ("completed", "failed", "cancelled"):
                await self._finish(live, kind, message)
                return
            event = live.see(message)
            self._tell(Notice(kind, job, message, event, tail))

    async def _next(self, worker: WorkerProcess) -> Frame:
        """The worker's next message about its job; raises _WorkerEnded when there will be none."""
        receiving = asyncio.ensure_future(worker.receive())
        try:
            while not (await asyncio.wait([receiving], timeout=1.0))[0]:
                if reason := self._overdue(worker):
                    await worker.kill()
                    raise _WorkerEnded(reason)
            frame = receiving.result()
        except (BrokenFrame, ValueError) as error:
            await worker.kill()
            raise _WorkerEnded(f"it sent something that cannot be read ({error})") from error
        finally:
            receiving.cancel()
        if frame is None:
            raise _WorkerEnded(await worker.ended())
        self._last_progress = time.monotonic()
        if reason := self._overdue(worker):
            await worker.kill()
            raise _WorkerEnded(reason)
        return frame

    def _overdue(self, worker: WorkerProcess) -> str | None:
        now = time.monotonic()
        if self._cancel_by is not None and now > self._cancel_by:
            return f"it did not stop within {self._limits.cancel:g} s of being cancelled"
        if now - self._last_progress > self._limits.stall:
            return f"it made no progress for {self._limits.stall:g} s"
        if now - worker.last_sign > self._limits.silence:
            return f"it gave no sign of life for {self._limits.silence:g} s"
        return None

    async def _finish(self, live: LiveJob, kind: str, message: Mapping[str, Any]) -> None:
        now, result = time.time(), live.result()
        payload: dict[str, Any] = {}
        if kind == "failed":
            payload = {"error": message["error"]}
        elif kind == "cancelled":
            payload = {"node": message.get("node"), "executed": message.get("executed", [])}

        def change(job: Job) -> Job:
            if kind == "completed":
                return job.succeed(now, result)
            return job.stop(now, result) if kind == "cancelled" else job.fail(now, message["error"], result)

        await self._close(live, kind, payload, change)

    async def _lost(self, live: LiveJob, reason: str) -> None:
        """The worker has ended in the middle of a job."""
        now = time.time()
        if live.cancelling:
            await self._close(live, "cancelled", {"reason": reason}, lambda j: j.stop(now, live.result()))
            return
        will_retry = live.job.worker_died(now, reason).status is Status.PENDING
        kind = "requeued" if will_retry else "quarantined"
        await self._close(live, kind, {"reason": reason}, lambda j: j.worker_died(now, reason))

    async def _close(
        self, live: LiveJob, kind: str, payload: Mapping[str, Any], change: Callable[[Job], Job]
    ) -> None:
        event = live.add(kind, payload)
        events = [(e.kind, e.payload) for e in live.events]
        job = await self._commit(lambda s: s.change(live.job.id, change, events))
        self.live = None
        self._tell(Notice(kind, job, payload, event))

    async def _interrupt(self, live: LiveJob) -> None:
        if live.cancelling or self._worker is None:
            return
        live.cancelling = True
        self._cancel_by = time.monotonic() + self._limits.cancel
        await self._worker.send({"order": "cancel", "job": live.job.id})

    def _tell(self, notice: Notice) -> None:
        for listener in [*self._listeners]:
            listener(notice)


def _waiting_only(job: Job) -> Job:
    """The job, if it waits; a running one is stopped through its worker."""
    if job.status is not Status.PENDING:
        raise WrongStatus(f"job {job.id} is {job.status} and does not wait")
    return job
