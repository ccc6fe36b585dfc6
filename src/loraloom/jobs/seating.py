"""Claims waiting jobs for idle workers, and remembers what each worker has loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from loraloom.jobs.job import Job, Request
from loraloom.jobs.placement import NOTHING, REACH, Needs, Placement, Seat, Waiting
from loraloom.jobs.store import Store


class Seating:
    """Used in the store's thread, but for `forget` and `resident`."""

    def __init__(self, needs: Callable[[Request], Needs] | None) -> None:
        """needs: what a job loads; None: jobs go in the order of the queue to whoever is idle."""
        self._needs = needs
        self._placement = Placement()
        self._known: dict[str, Needs] = {}
        self._resident: dict[str, Needs] = {}
        self._since: dict[str, float] = {}

    def claim(self, store: Store, idle: Sequence[str], *, alone: bool) -> list[Job]:
        """The jobs for these workers, claimed for them, as far as there are any.

        alone: there is only one worker: it takes them in the order of the queue."""
        if self._needs is None or alone:
            jobs = [job for name in idle if (job := store.claim(name)) is not None]
        else:
            jobs = store.claim_these(self._chosen(store, idle, self._needs))
        now = time.monotonic()
        for job in jobs:
            name = job.place or ""
            self._resident[name] = self._known.pop(job.id, NOTHING)
            self._since[name] = now
        return jobs

    def resident(self, worker: str) -> Needs:
        """What a worker ran last, and so has loaded."""
        return self._resident.get(worker, NOTHING)

    def forget(self, worker: str) -> None:
        """A worker has nothing loaded any more."""
        self._resident.pop(worker, None)

    def _chosen(
        self, store: Store, idle: Sequence[str], needs: Callable[[Request], Needs]
    ) -> list[tuple[str, str]]:
        ahead = store.waiting_ids(len(idle) + REACH)
        new = store.some([job_id for job_id, _ in ahead if job_id not in self._known])
        fresh = {job.id: needs(job.request) for job in new}
        self._known = {i: self._known.get(i) or fresh.get(i, NOTHING) for i, _ in ahead}
        seats = [Seat(name, self.resident(name), self._since.get(name, 0.0)) for name in idle]
        waiting = [Waiting(job_id, priority, self._known[job_id]) for job_id, priority in ahead]
        return self._placement.choose(waiting, seats)
