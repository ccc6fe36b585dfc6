"""Runs the queue: hands jobs to workers, and tells who listens what comes of them."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from loraloom.errors import DiskFull
from loraloom.jobs.arrivals import Arrivals
from loraloom.jobs.database import QueueUnavailable, unavailable
from loraloom.jobs.job import Job, Request, Status, WrongStatus
from loraloom.jobs.keeper import WorkerKeeper
from loraloom.jobs.lane import Lane
from loraloom.jobs.live import LiveJob
from loraloom.jobs.notices import Limits, Listener, Notice
from loraloom.jobs.place import Maker
from loraloom.jobs.placement import Needs
from loraloom.jobs.publishing import Files, Others, Places, publish, resume
from loraloom.jobs.seating import Seating
from loraloom.jobs.store import Store
from loraloom.jobs.worker_process import WorkerProcess, WorkerSettings
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON

_DISK_RETRY_SECONDS = 2.0
_FAULT_PAUSE_SECONDS = 1.0
_TOGETHER = 500
_PAUSED = "paused"

Result = TypeVar("Result")


class Dispatcher:
    """The queue at work. Everything runs in the event loop that called `start`.

    running: the jobs that workers have, by id. changes: counts commits.
    """

    def __init__(
        self,
        store: StoreThread,
        workers: WorkerSettings | Sequence[WorkerSettings],
        *,
        limits: Limits | None = None,
        paused: bool = False,
        previews: str = "none",
        needs: Callable[[Request], Needs] | None = None,
        places: Places | None = None,
        likeness: Callable[[Request], str | None] | None = None,
        rows: int = 1,
        log: Callable[[str], object] = sys.stderr.write,
    ) -> None:
        """workers: those of this machine, one process each. paused: start no jobs until told to, whatever a
        former server was told. previews: how pictures of unfinished work are made for jobs that do not say it
        themselves. needs: what a job loads; without, jobs go in the order of the queue to whoever is idle.
        places: for files of jobs that ran elsewhere. likeness: equal for jobs that are worth running
        together, of which a worker gets up to `rows` at once."""
        self._store, self._arrivals, self._limits = store, Arrivals(), limits or Limits()
        here = [workers] if isinstance(workers, WorkerSettings) else workers
        self._log = here[0].log if here else log
        self.paused = paused
        self._previews, self._places, self._rows = previews, places or Places(), rows
        self.lanes: dict[str, Lane] = {}
        self.running: dict[str, LiveJob] = {}
        self._drained: set[str] = set()
        self.changes = 0
        self._pruning = self._recovered = False
        self._seating = Seating(needs, likeness)
        self._trouble: str | None = None
        self._wake = asyncio.Event()
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        for number, how in enumerate(here):
            self._lane(f"here-{number}", partial(WorkerProcess.start, how), self._limits)

    async def start(self) -> None:
        """Recover what a former server left running, then begin."""
        if not self.paused:
            self.paused = await self.read(lambda s: s.setting(_PAUSED)) is True
        self._task = asyncio.create_task(self._supervised())

    async def stop(self) -> None:
        """End the workers. Jobs that are running will run again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(lane.stop() for lane in self.lanes.values()))

    def add(self, name: str, make: Maker, limits: Limits | None = None) -> None:
        """A further worker, which is started at once and again whenever it has ended."""
        lane = self._lane(name, make, limits or self._limits)
        if self._recovered:
            lane.start()

    async def remove(self, name: str) -> None:
        """Do without a worker: it is ended; a job that it runs waits again. Nothing when there is none, also
        when others do without it at the same time."""
        if (lane := self.lanes.get(name)) is None:
            return
        await lane.retire()
        if self.lanes.get(name) is not lane:
            return
        del self.lanes[name]
        self._wake.set()
        self._seating.forget(name)
        self.tell(Notice("worker"))

    def _lane(self, name: str, make: Maker, limits: Limits) -> Lane:
        def started() -> None:
            self._seating.forget(name)
            self.tell(Notice("worker"))

        keeper = WorkerKeeper(make, limits, self._log, started)
        self.lanes[name] = lane = Lane(name, keeper, limits, self, self._rows)
        lane.draining = name in self._drained
        return lane

    def drain(self, name: str, draining: bool) -> None:
        """Give a worker no further job, or jobs again; also when it comes back under this name."""
        (self._drained.add if draining else self._drained.discard)(name)
        self.lanes[name].drain(draining)

    @property
    def _keeper(self) -> WorkerKeeper | None:
        """Of the worker that speaks for all: the first that is ready, else the first."""
        keepers = [lane.keeper for lane in self.lanes.values()]
        return next((k for k in keepers if k.is_ready), keepers[0] if keepers else None)

    @property
    def worker_info(self) -> Mapping[str, JSON]:
        """What a worker says of itself; "error" says what keeps the queue from working."""
        info = self._keeper.info if self._keeper is not None else {}
        return info if self._trouble is None else {**info, "error": self._trouble}

    @property
    def declared(self) -> JSON:
        """The node classes that workers bring along; None until one is ready, or when it brings none."""
        return None if self._keeper is None else self._keeper.declared

    async def declare(self, seconds: float = 5.0) -> None:
        """Bring `declared` up to date, as far as a worker answers."""
        if self._keeper is not None:
            await self._keeper.declare(seconds)

    def resident(self, worker: str) -> Needs:
        """What a worker has loaded."""
        return self._seating.resident(worker)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every notice; the function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def call(self, function: Callable[[Store], Result]) -> Result:
        """Run a function on the store; its result, committed. Raises QueueUnavailable or DiskFull when the
        file cannot be used now."""
        future = self._store.call(function)
        future.add_done_callback(self._changed)  # also when nobody waits for the answer any more
        return await self._answer(future)

    def _changed(self, _future: Future[Any]) -> None:
        self.changes += 1

    async def read(self, function: Callable[[Store], Result]) -> Result:
        """Run a function that only reads, in a thread of its own; it waits for no writer."""
        return await self._answer(self._store.read(function))

    async def _answer(self, future: Future[Result]) -> Result:
        try:
            return await self._arrivals.of(future)
        except sqlite3.DatabaseError as error:
            if (said := unavailable(error)) is None:
                raise
            raise said from error

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
        self.tell(Notice("queue", job))
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
            self.tell(Notice("cancelled", job))
            self.tell(Notice("queue", job))
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
            self.tell(Notice("cancelled", job))
        if jobs:
            self.tell(Notice("queue", jobs[-1]))
        return [job.id for job in jobs]

    async def interrupt(self, job_id: str | None = None) -> bool:
        """Stop what is running (only that job, if one is named); whether there was any."""
        return any([await lane.interrupt(job_id) for lane in self.lanes.values()])

    async def retry(self, job_id: str) -> Job:
        """Queue a job again that failed, was cancelled or put aside. Raises UnknownJob, WrongStatus."""
        job = await self.call(
            lambda s: s.change(job_id, lambda j: j.retry(s.next_number()), [("retried", {})])
        )
        self._wake.set()
        self.tell(Notice("queue", job))
        return job

    async def move(self, job_id: str, number: float, priority: int) -> Job:
        """Give a waiting job another place. Raises UnknownJob, WrongStatus."""
        job = await self.call(lambda s: s.change(job_id, lambda j: j.move(number, priority)))
        self.tell(Notice("queue", job))
        return job

    async def pause(self, paused: bool) -> None:
        """Start no further jobs, or go on; a server that starts anew does as it was told last."""
        await self.call(lambda s: s.set_setting(_PAUSED, paused))
        self.paused = paused
        self._wake.set()
        self.tell(Notice("queue"))

    async def let_go(self, models: bool, results: bool) -> None:
        """Let workers release models or kept results, after the jobs that are running."""
        for name, lane in self.lanes.items():
            if lane.keeper.worker is not None:
                await lane.keeper.worker.send({"order": "free", "models": models, "results": results})
            if models:
                self._seating.forget(name)

    async def check(self, request: Request, seconds: float = 60.0) -> JSON:
        """What the nodes themselves object to in a request. Raises TimeoutError without an answer."""
        if self._keeper is None:
            raise TimeoutError("there is no worker")
        return await self._keeper.check(request, seconds)

    async def settled(self, seconds: float = 60.0) -> bool:
        """Wait until a worker is ready; False when it cannot start, or not within so many seconds."""
        return self._keeper is not None and await self._keeper.settled(seconds) is not None

    # ---- The loop ----

    async def _supervised(self) -> None:
        """Hand out jobs, and go on after a fault of our own, which is shown."""
        while True:
            try:
                if not self._recovered:
                    await self._recover()
                await self._work()
            except Exception as error:  # noqa: BLE001 - a queue that stands still helps nobody
                await self.failed(error)
                await asyncio.sleep(_FAULT_PAUSE_SECONDS)

    async def _recover(self) -> None:
        """What a former server left running waits again; what it had not given its name gets it."""
        await self.commit(lambda s: s.recover())
        await resume(self.commit, await self.commit(lambda s: s.publications()), self._places)
        self._recovered = True
        for lane in self.lanes.values():
            lane.start()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            idle = [] if self.paused else [name for name, lane in self.lanes.items() if lane.idle]
            if not idle:
                continue
            rows = {name: self.lanes[name].rows for name in idle}
            takers = sum(lane.keeper.is_ready and not lane.draining for lane in self.lanes.values())
            alone = len(self.lanes) == 1
            claim = partial(self._seating.claim, idle=rows, takers=takers, alone=alone)
            jobs = await self.commit(claim)
            self._trouble = None
            by_place: dict[str, list[Job]] = {}
            for job in jobs:
                by_place.setdefault(job.place or "", []).append(job)
            for place, of in by_place.items():
                await self._begin(place, of)
            if len(by_place) == len(idle):
                continue
            if await self.commit(lambda s: s.count(Status.PENDING)):
                self._wake.set()

    async def _begin(self, place: str, jobs: Sequence[Job]) -> None:
        lane = self.lanes.get(place)
        if lane is None or not lane.idle:  # it has gone in this moment
            for job in jobs:
                await self.commit(lambda s, job=job: s.settle(job, Job.interrupted))
            self._wake.set()
            return
        lives = [LiveJob(job, self._preview_method(job)) for job in jobs]
        self.running |= {live.job.id: live for live in lives}
        lane.give(lives)

    def _preview_method(self, job: Job) -> str:
        asked = job.request.extra_data.get("preview_method")
        method = self._previews if asked in (None, "default") else str(asked)
        return "" if method == "none" else method

    async def failed(self, error: Exception, hit: Job | None = None) -> None:
        """A fault of our own: it is shown, and costs the job it hit an attempt."""
        fault = f"the server failed ({type(error).__name__}: {error})"
        self._trouble = fault
        self._log("".join(traceback.format_exception(error)))

        def lost(job: Job) -> bool:
            if hit is not None:
                return (job.id, job.claims) == (hit.id, hit.claims)
            return job.id not in self.running

        await self.commit(lambda s: s.recover(fault, lost))

    # ---- What lanes ask for ----

    def free(self) -> None:
        """A worker waits for a job."""
        self._wake.set()

    def over(self, job: Job) -> None:
        """How a job ended is committed, or thrown away."""
        self.running.pop(job.id, None)

    async def done(self) -> None:
        """A worker is done with a job."""
        self._wake.set()  # for a job that waits again
        if not self._pruning:
            self._pruning = True
            try:
                await self.commit(lambda s: s.prune())
            finally:
                self._pruning = False
        self.tell(Notice("queue"))

    async def commit(self, function: Callable[[Store], Result]) -> Result:
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

    async def publish(self, job_id: str, files: Files) -> Others:
        """Give the files of a job's committed result their names; those that are called otherwise."""
        return await publish(self.commit, self._places, job_id, files)

    def tell(self, notice: Notice) -> None:
        for listener in [*self._listeners]:
            try:
                listener(notice)
            except Exception as error:  # noqa: BLE001 - who listens badly must not stop the queue
                self._log("".join(traceback.format_exception(error)))


def _stopped_waiting(job: Job) -> Job:
    """The job cancelled, if it waits; a running one is stopped through its worker."""
    if job.status is not Status.PENDING:
        raise WrongStatus(f"job {job.id} is {job.status} and does not wait")
    return job.stop(time.time())
