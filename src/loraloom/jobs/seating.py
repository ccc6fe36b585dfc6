"""Claims waiting jobs for idle workers, and remembers what each worker has loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from loraloom.jobs.job import Job, Request
from loraloom.jobs.placement import NOTHING, REACH, Needs, Placement, Seat, Waiting
from loraloom.jobs.store import Store


class Seating:
    """Used in the store's thread, but for `forget` and `resident`."""

    def __init__(
        self,
        needs: Callable[[Request], Needs] | None,
        likeness: Callable[[Request], str | None] | None = None,
    ) -> None:
        """needs: what a job loads; None: jobs go in the order of the queue to whoever is idle.
        likeness: equal for jobs that are worth running together; None: none are."""
        self._needs, self._likeness = needs, likeness
        self._alike: dict[str, str | None] = {}
        self._placement = Placement()
        self._known: dict[str, Needs] = {}
        self._resident: dict[str, Needs] = {}
        self._since: dict[str, float] = {}

    def claim(self, store: Store, idle: Mapping[str, int], *, alone: bool) -> list[Job]:
        """The jobs for these workers, claimed for them, as far as there are any.

        idle: worker → how many jobs it may be given, if they are alike. alone: there is only one worker: it
        takes them in the order of the queue."""
        if self._needs is None or alone:
            jobs = [job for name in idle if (job := store.claim(name)) is not None]
        else:
            jobs = store.claim_these(self._chosen(store, [*idle], self._needs))
        jobs += self._companions(store, jobs, idle)
        now = time.monotonic()
        for job in reversed(jobs):  # the first of each place last: it is known what that needs
            name = job.place or ""
            known = self._known.pop(job.id, None)
            self._resident[name] = known or (self._needs(job.request) if self._needs else NOTHING)
            self._since[name] = now
        return jobs

    def _companions(self, store: Store, first: Sequence[Job], idle: Mapping[str, int]) -> list[Job]:
        """Waiting jobs that are like one that a worker was just given, claimed for it too.

        They go before others of their priority that are not like it, which are next all the same. What took
        a worker along, or was lost with one, runs by itself."""
        heads = {job.place or "": job for job in first if idle[job.place or ""] > 1 and not _is_risky(job)}
        if self._likeness is None or not heads:
            return []
        ahead = [job for job in store.waiting(REACH + sum(idle.values())) if not _is_risky(job)]
        named = {job.id: job for job in (*heads.values(), *ahead)}
        known = self._alike
        self._alike = {i: known[i] if i in known else self._likeness(j.request) for i, j in named.items()}
        given: dict[str, list[str]] = {place: [] for place in heads}
        for job in ahead:
            places = [
                place
                for place, head in heads.items()
                if head.priority == job.priority
                and self._alike[head.id] is not None
                and self._alike[head.id] == self._alike[job.id]
                and len(given[place]) < idle[place] - 1
            ]
            if places:
                given[min(places, key=lambda place: len(given[place]))].append(job.id)
        return store.claim_these([(job_id, place) for place, of in given.items() for job_id in of])

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


def _is_risky(job: Job) -> bool:
    """Whether it may have been to blame for the end of a worker."""
    return job.deaths > 0 or job.losses > 0
