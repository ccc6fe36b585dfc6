"""Claims waiting jobs for idle workers, and remembers what each worker has loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from loraloom.jobs.job import Job, Request, Status
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

    def claim(self, store: Store, idle: Mapping[str, int], *, takers: int, alone: bool) -> list[Job]:
        """The jobs for these workers, claimed for them, as far as there are any.

        idle: worker → how many jobs it may be given, if they are alike. takers: workers that take jobs, idle
        or not. alone: there is only one worker: it takes them in the order of the queue."""
        if self._needs is None or alone:
            jobs = [job for name in idle if (job := store.claim(name)) is not None]
        else:
            jobs = store.claim_these(self._chosen(store, [*idle], self._needs))
        jobs += self._companions(store, jobs, idle, takers)
        now = time.monotonic()
        for job in reversed(jobs):  # the first of each place last: it is known what that needs
            name = job.place or ""
            known = self._known.pop(job.id, None)
            self._resident[name] = known or (self._needs(job.request) if self._needs else NOTHING)
            self._since[name] = now
        return jobs

    def _companions(
        self, store: Store, first: Sequence[Job], idle: Mapping[str, int], takers: int
    ) -> list[Job]:
        """Waiting jobs that are like one that a worker was just given, claimed for it too.

        They go before others of their priority that are not like it, which are next all the same. What took
        a worker along, or was lost with one, runs by itself. Of several workers each takes at most its share
        of what waits (guided self-scheduling), so that those that will soon be idle find work."""
        known = {job.id: self._alike.pop(job.id, None) for job in first}
        heads = {job.place or "": job for job in first if idle[job.place or ""] > 1}
        alike = {place: known[job.id] or self._like(job) for place, job in heads.items()}
        heads = {place: job for place, job in heads.items() if alike[place] is not None}
        if not heads:
            return []
        share = -(-(store.count(Status.PENDING) + len(first)) // max(takers, 1))
        given: dict[str, list[str]] = {place: [] for place in heads}
        for job_id, priority in self._ahead(store, REACH + sum(idle.values())):
            places = [
                place
                for place, head in heads.items()
                if head.priority == priority
                and alike[place] == self._alike[job_id]
                and len(given[place]) < min(idle[place], share) - 1
            ]
            if places:
                given[min(places, key=lambda place: len(given[place]))].append(job_id)
                del self._alike[job_id]
        return store.claim_these([(job_id, place) for place, of in given.items() for job_id in of])

    def _ahead(self, store: Store, reach: int) -> list[tuple[str, int]]:
        """(id, priority) of the next jobs; what each is like is known then."""
        ahead = store.waiting_ids(reach)
        fresh = store.some([job_id for job_id, _ in ahead if job_id not in self._alike])
        new = {job.id: self._like(job) for job in fresh}
        self._alike = {i: self._alike[i] if i in self._alike else new.get(i) for i, _ in ahead}
        return ahead

    def _like(self, job: Job) -> str | None:
        """None: it runs by itself."""
        return None if self._likeness is None or _is_risky(job) else self._likeness(job.request)

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
