"""One worker and the job that it runs, or those that it runs together.

The order is always the same: first the store has committed it, then it is told. A worker that ends, hangs or
talks nonsense costs its job an attempt, never the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.job import Job, Status
from loraloom.jobs.keeper import WorkerKeeper
from loraloom.jobs.live import LiveJob
from loraloom.jobs.notices import Limits, Notice
from loraloom.jobs.orders import Entry, order_of
from loraloom.jobs.place import Place
from loraloom.jobs.publishing import Files, Others, discard, with_names
from loraloom.jobs.store import JobEvent, LeaseOver, Store

_FAULT_PAUSE_SECONDS = 1.0
_OWN_PAUSE_SECONDS = 5.0
_LAST_SECONDS = 2.0
"""How long what a worker said last has to be committed when the lane stops."""

Result = TypeVar("Result")


class Desk(Protocol):
    """What a lane asks of the queue."""

    async def commit(self, function: Callable[[Store], Result]) -> Result: ...
    async def publish(self, job_id: str, files: Files) -> Others: ...
    def tell(self, notice: Notice) -> None: ...
    def free(self) -> None: ...
    def over(self, job: Job) -> None: ...
    async def done(self) -> None: ...
    async def failed(self, error: Exception, hit: Job | None = None) -> None: ...


class _WorkerEnded(Exception):
    """The worker is gone, or had to be ended; the text says why."""


def _entry(live: LiveJob) -> Entry:
    return {"job": live.job.id, "request": live.job.request.to_json(), "previews": live.previews}


class Lane:
    """Runs the jobs that it is given, one after the other, or some together. name: what leases call it.

    rows: how many it may be given at once; lives: those that run, by id."""

    def __init__(self, name: str, keeper: WorkerKeeper, limits: Limits, desk: Desk, rows: int = 1) -> None:
        self.name, self.keeper, self.rows = name, keeper, rows
        self.lives: dict[str, LiveJob] = {}
        self.draining = self._stopping = False
        self._limits, self._desk = limits, desk
        self._offer: asyncio.Future[Sequence[LiveJob]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_progress = 0.0
        self._cancel_by: float | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End the worker, which has a moment for what it is doing. A job that it does not finish is not
        settled."""
        self._stopping = True
        if not self.lives:
            await self._end_task()
        await self.keeper.close()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_LAST_SECONDS)
        await self._end_task()

    async def _end_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def retire(self) -> None:
        """Take no further job, give back the one that is running, and end."""
        self.draining = True
        await self.keeper.kill()
        while self.lives:
            await asyncio.sleep(0.02)
        await self.stop()

    # ---- What the queue asks ----

    @property
    def idle(self) -> bool:
        """It waits for a job and can begin at once."""
        if self._offer is None or self._offer.done() or self.draining:
            return False
        if self.keeper.worker is None or not self.keeper.worker.alive:
            self._offer.set_result(())  # it goes for another worker
            return False
        return True

    @property
    def live(self) -> LiveJob | None:
        """The job that runs, or the first of several."""
        return next(iter(self.lives.values()), None)

    def drain(self, draining: bool) -> None:
        """Take no further job, or jobs again."""
        self.draining = draining
        self._desk.free()

    def give(self, lives: Sequence[LiveJob]) -> None:
        """Run jobs that were claimed for an idle lane."""
        assert self._offer is not None
        self.lives = {live.job.id: live for live in lives}
        self._offer.set_result(lives)

    async def interrupt(self, job_id: str | None = None) -> bool:
        """Stop what is running (only that job, if one is named); whether there was any."""
        found = [live for live in self.lives.values() if job_id in (None, live.job.id)]
        worker = self.keeper.worker
        for live in found:
            if live.cancelling or worker is None:
                continue
            live.cancelling = True
            self._cancel_by = time.monotonic() + self._limits.cancel
            await worker.send({"order": "cancel", "job": live.job.id})
        return bool(found)

    # ---- The loop ----

    async def _work(self) -> None:
        while not self._stopping:
            try:
                await self._next_job()
            except Exception as error:  # noqa: BLE001 - it costs the job an attempt, and the lane goes on
                await self.keeper.kill()
                hits = [live.job for live in self.lives.values()]
                self._all_over()
                for hit in hits:
                    await self._desk.failed(error, hit)
                await asyncio.sleep(_FAULT_PAUSE_SECONDS)

    async def _next_job(self) -> None:
        worker = await self.keeper.ready()
        self._offer = asyncio.get_running_loop().create_future()
        self._desk.free()
        lives = await self._offer
        if not lives:
            return
        try:
            await self._run(worker, lives)
        except _WorkerEnded as error:
            for live in [*self.lives.values()]:
                if live.cancelling or not self._stopping:
                    with self._noted():
                        await self._lost(worker, live, str(error))
        except LeaseOver as error:
            await worker.kill()
            self._note(error)
        self._all_over()
        await self._desk.done()

    @contextmanager
    def _noted(self) -> Generator[None]:
        try:
            yield
        except LeaseOver as error:
            self._note(error)

    def _note(self, error: LeaseOver) -> None:
        self.keeper.log(f"{error}; what came of it is thrown away\n")

    def _all_over(self) -> None:
        for live in [*self.lives.values()]:
            self._over(live)

    def _over(self, live: LiveJob) -> None:
        if self.lives.pop(live.job.id, None) is not None:
            self._desk.over(live.job)

    async def _run(self, worker: Place, lives: Sequence[LiveJob]) -> None:
        self._cancel_by = None
        self._last_progress = time.monotonic()
        for live in lives:
            self._tell("started", live, {}, live.add("started", {"attempt": live.job.claims}))
            self._desk.tell(Notice("queue", live.job))
        await worker.send(order_of([_entry(live) for live in lives], self.rows))
        while self.lives:
            message, tail = await self._next(worker)
            live = self.lives.get(str(message.get("job")))
            if live is None:
                continue
            try:
                kind = str(message["kind"])
                if kind in ("completed", "failed", "cancelled"):
                    await self._ended(live, kind, message)
                    continue
                event = live.see(message)
            except (KeyError, TypeError, AttributeError) as error:
                await worker.kill()
                raise _WorkerEnded(f"it sent something that cannot be read ({error!r})") from error
            self._tell(kind, live, message, event, tail)

    async def _ended(self, live: LiveJob, kind: str, message: Mapping[str, Any]) -> None:
        """A job has ended; others may go on."""
        if self._stopping and kind == "cancelled" and not live.cancelling:
            return  # nobody asked for it: its worker is ending, and it begins anew with the next one
        if len(self.lives) == 1:
            await self._finish(live, kind, message)
            return
        with self._noted():
            await self._finish(live, kind, message)
        self._over(live)
        await self._desk.done()

    async def _next(self, worker: Place) -> Frame:
        """The worker's next message about its job; raises _WorkerEnded when there will be none."""
        receiving = asyncio.ensure_future(worker.receive())
        try:
            looked = time.monotonic()
            while not (await asyncio.wait([receiving], timeout=1.0))[0]:
                looked, former = time.monotonic(), looked
                if looked - former > _OWN_PAUSE_SECONDS:
                    continue  # this process stood still: what the worker said meanwhile is still to be read
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

    def _overdue(self, worker: Place) -> str | None:
        now = time.monotonic()
        # A step of many rows takes its time: those that go on must not pay for one that is to stop.
        is_due = self._cancel_by is not None and now > self._cancel_by
        if is_due and all(live.cancelling for live in self.lives.values()):
            return f"it did not stop within {self._limits.cancel:g} s of being cancelled"
        if now - self._last_progress > self._limits.stall:
            return f"it made no progress for {self._limits.stall:g} s"
        if now - worker.last_sign > self._limits.silence:
            return f"it gave no sign of life for {self._limits.silence:g} s"
        return None

    async def _finish(self, live: LiveJob, kind: str, message: Mapping[str, Any]) -> None:
        files = [(str(staged), str(final)) for staged, final in message.get("publish", ())]
        try:
            held = [(m, live.see(m)) for m in message.get("held", ())]
            live.see(message)
            now, result = time.time(), live.result()
            payload: dict[str, Any] = {} if live.partial is None else {"partial": live.partial}
            if kind == "failed":
                payload["error"] = message["error"]
            elif kind == "cancelled":
                payload = {"node": message.get("node"), "executed": message.get("executed", [])}

            def change(job: Job) -> Job:
                if kind == "completed":
                    return job.succeed(now, result)
                if kind == "cancelled":
                    return job.stop(now, result)
                return job.fail(now, message["error"], result)

            await self._close(live, kind, payload, change, held, files)
        except (LeaseOver, KeyError, TypeError, AttributeError):
            discard(files)
            raise

    async def _lost(self, worker: Place, live: LiveJob, reason: str) -> None:
        """The worker has ended in the middle of a job, or is not heard of any more."""
        now = time.time()
        if live.cancelling:
            await self._close(live, "cancelled", {"reason": reason}, lambda j: j.stop(now, live.result()))
            return

        def change(job: Job) -> Job:
            return job.out_of_reach(now, reason) if worker.out_of_reach else job.worker_died(now, reason)

        kind = "requeued" if change(live.job).status is Status.PENDING else "quarantined"
        await self._close(live, kind, {"reason": reason}, change)

    async def _close(
        self,
        live: LiveJob,
        kind: str,
        payload: Mapping[str, Any],
        change: Callable[[Job], Job],
        held: list[tuple[Mapping[str, Any], JobEvent | None]] | None = None,
        files: list[tuple[str, str]] | None = None,
    ) -> None:
        """Commit how the job ended with all its events and files; only then is it told, to whoever listens
        or asks."""
        event = live.event(kind, payload)
        events = [(e.kind, e.payload) for e in (*live.events, event)]
        job = await self._desk.commit(lambda s: s.settle(live.job, change, events, files or ()))
        if files:
            others = await self._desk.publish(job.id, files)
            held = [(with_names(m, others), seen) for m, seen in held or ()]
            job = await self._desk.commit(lambda s: s.find(job.id)) or job
        self._over(live)
        for message, seen in held or ():
            self._tell(str(message["kind"]), live, message, seen)
        self._desk.tell(Notice(kind, job, payload, event))

    def _tell(
        self,
        kind: str,
        live: LiveJob,
        payload: Mapping[str, Any],
        event: JobEvent | None,
        preview: bytes = b"",
    ) -> None:
        self._desk.tell(Notice(kind, live.job, payload, event, preview))
