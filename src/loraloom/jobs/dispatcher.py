"""Runs the queue: hands jobs to the worker one by one, keeps what comes of them, and tells who listens.

The order is always the same: first the store has committed it, then it is told. A worker that ends, hangs or
talks nonsense costs its job an attempt, never the queue.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from loraloom.errors import DiskFull
from loraloom.jobs.database import QueueUnavailable, unavailable
from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.job import Job, Request, Status, WrongStatus
from loraloom.jobs.keeper import WorkerKeeper
from loraloom.jobs.live import LiveJob
from loraloom.jobs.notices import Limits, Listener, Notice
from loraloom.jobs.store import Store
from loraloom.jobs.worker_process import WorkerProcess, WorkerSettings
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON

_DISK_RETRY_SECONDS = 2.0
_FAULT_PAUSE_SECONDS = 1.0
_TOGETHER = 500
_PAUSED = "paused"

Result = TypeVar("Result")


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
        """paused: start no jobs until told to, whatever a former server was told.
        previews: how pictures of unfinished work are made for jobs that do not say it themselves."""
        self._store, self._log, self._limits = store, worker.log, limits or Limits()
        self._keeper = WorkerKeeper(worker, self._limits, lambda: self._tell(Notice("worker")))
        self.paused = paused
        self._previews = previews
        self.live: LiveJob | None = None
        self.changes = 0
        self._trouble: str | None = None
        self._wake = asyncio.Event()
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._last_progress = 0.0
        self._cancel_by: float | None = None

    async def start(self) -> None:
        """Recover what a former server left running, then begin."""
        if not self.paused:
            self.paused = await self.read(lambda s: s.setting(_PAUSED)) is True
        self._wake.set()
        self._task = asyncio.create_task(self._supervised())

    async def stop(self) -> None:
        """End the worker. A job that is running will run again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._keeper.kill()

    @property
    def worker_info(self) -> Mapping[str, JSON]:
        """What the worker says of itself; "error" says what keeps the queue from working."""
        return self._keeper.info if self._trouble is None else {**self._keeper.info, "error": self._trouble}

    @property
    def declared(self) -> JSON:
        """The node classes that the worker brings along; None until it is ready, or when it brings none."""
        return self._keeper.declared

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every notice; the function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def call(self, function: Callable[[Store], Result]) -> Result:
        """Run a function on the store; its result, committed. Raises QueueUnavailable or DiskFull when the
        file cannot be used now."""
        return await _answer(self._store.call(function))

    async def read(self, function: Callable[[Store], Result]) -> Result:
        """Run a function that only reads, in a thread of its own; it waits for no writer."""
        return await _answer(self._store.read(function))

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
        while not await self.interrupt(job_id):
            try:
                job = await self.call(lambda s: s.change(job_id, _stopped_waiting, [("cancelled", {})]))
            except WrongStatus:
                known = await self.read(lambda s: s.get(job_id))
                if known.status.final:
                    return False
                # It has just been claimed, or it is being put away: in a moment one of both will be known.
                await asyncio.sleep(0.02)
                continue
            self._tell(Notice("cancelled", job))
            self._tell(Notice("queue", job))
            return True
        return True

    async def cancel_waiting(self, job_ids: Sequence[str] | None = None) -> list[str]:
        """Cancel waiting jobs, by default all, many with one commit; the ids of those that were."""
        cancelled: list[str] = []
        if job_ids is None:
            while found := await self.call(lambda s: s.cancel_waiting(None, _TOGETHER)):
                cancelled += self._told_cancelled(found)
        for start in range(0, len(job_ids or ()), _TOGETHER):
            part = (job_ids or ())[start : start + _TOGETHER]
            found = await self.call(lambda s, p=part: s.cancel_waiting(p, _TOGETHER))
            cancelled += self._told_cancelled(found)
        return cancelled

    def _told_cancelled(self, jobs: Sequence[Job]) -> list[str]:
        for job in jobs:
            self._tell(Notice("cancelled", job))
        if jobs:
            self._tell(Notice("queue", jobs[-1]))
        return [job.id for job in jobs]

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

    async def pause(self, paused: bool) -> None:
        """Start no further jobs, or go on; a server that starts anew does as it was told last."""
        await self.call(lambda s: s.set_setting(_PAUSED, paused))
        self.paused = paused
        self._wake.set()
        self._tell(Notice("queue"))

    async def free(self, models: bool, results: bool) -> None:
        """Let the worker release models or kept results, after the job that is running."""
        if self._keeper.worker is not None:
            await self._keeper.worker.send({"order": "free", "models": models, "results": results})

    async def check(self, request: Request, seconds: float = 60.0) -> JSON:
        """What the nodes themselves object to in a request. Raises TimeoutError without an answer."""
        return await self._keeper.check(request, seconds)

    async def settled(self, seconds: float = 60.0) -> bool:
        """Wait until the worker is ready; False when it cannot start, or not within so many seconds."""
        return await self._keeper.settled(seconds) is not None

    # ---- The loop ----

    async def _supervised(self) -> None:
        """Work, and go on after a fault of our own: it is shown, and costs the job it hit an attempt."""
        fault: str | None = None
        while True:
            try:
                await self._commit(lambda s, why=fault: s.recover(why))
                await self._work()
            except Exception as error:  # noqa: BLE001 - a queue that stands still helps nobody
                fault = f"the server failed ({type(error).__name__}: {error})"
                self._trouble = fault
                self._log("".join(traceback.format_exception(error)))
                await self._keeper.kill()
            self.live = None
            await asyncio.sleep(_FAULT_PAUSE_SECONDS)

    async def _work(self) -> None:
        while True:
            worker = await self._keeper.ready()
            job = None if self.paused else await self._commit(lambda s: s.claim())
            self._trouble = None
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
                result = await self.call(function)
            except (QueueUnavailable, DiskFull) as error:
                self._trouble = str(error)
                self._log(self._trouble + "\n")
                await asyncio.sleep(_DISK_RETRY_SECONDS)
            else:
                return result

    async def _wait_for_work(self) -> None:
        """Until something was queued; a worker that ends meanwhile is noticed when the next job needs it."""
        if not self.paused and await self._commit(lambda s: s.count(Status.PENDING)):
            return
        self._wake.clear()
        if not self.paused and await self._commit(lambda s: s.count(Status.PENDING)):
            return
        await self._wake.wait()

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
            try:
                kind = str(message["kind"])
                if kind in ("completed", "failed", "cancelled"):
                    await self._finish(live, kind, message)
                    return
                event = live.see(message)
            except (KeyError, TypeError, AttributeError) as error:
                await worker.kill()
                raise _WorkerEnded(f"it sent something that cannot be read ({error!r})") from error
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
            raise _WorkerEnded(await worker.gone())
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
        """Commit how the job ended with all its events; only then is it told, to whoever listens or asks."""
        event = live.event(kind, payload)
        events = [(e.kind, e.payload) for e in (*live.events, event)]
        job = await self._commit(lambda s: s.change(live.job.id, change, events))
        self.live = None
        self._tell(Notice(kind, job, payload, event))

    async def _interrupt(self, live: LiveJob) -> None:
        worker = self._keeper.worker
        if live.cancelling or worker is None:
            return
        live.cancelling = True
        self._cancel_by = time.monotonic() + self._limits.cancel
        await worker.send({"order": "cancel", "job": live.job.id})

    def _tell(self, notice: Notice) -> None:
        self.changes += notice.kind == "queue"
        for listener in [*self._listeners]:
            try:
                listener(notice)
            except Exception as error:  # noqa: BLE001 - who listens badly must not stop the queue
                self._log("".join(traceback.format_exception(error)))


async def _answer(future: Future[Result]) -> Result:
    try:
        return await asyncio.wrap_future(future)
    except sqlite3.DatabaseError as error:
        if (said := unavailable(error)) is None:
            raise
        raise said from error


def _stopped_waiting(job: Job) -> Job:
    """The job cancelled, if it waits; a running one is stopped through its worker."""
    if job.status is not Status.PENDING:
        raise WrongStatus(f"job {job.id} is {job.status} and does not wait")
    return job.stop(time.time())
