"""Which job goes to which worker: where its model is resident, else to the emptiest; none waits for ever.

Pure: it knows names, not workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

REACH = 32
"""How many waiting jobs beyond the number of idle workers are looked at."""
PATIENCE = 16
"""How often others may go before a job that was first."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job loads. base: its models, stack: its LoRAs and what else is put onto them, in order."""

    base: frozenset[str] = frozenset()
    stack: tuple[str, ...] = ()


NOTHING = Needs()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits."""

    id: str
    priority: int = 0
    needs: Needs = NOTHING


@dataclass(frozen=True, slots=True)
class Seat:
    """An idle worker. resident: what it ran last; idle_since orders those that hold nothing of use."""

    name: str
    resident: Needs = NOTHING
    idle_since: float = 0.0

    def fits(self, needs: Needs) -> int:
        """2: the models and what is put onto them are there; 1: the models are; 0: neither."""
        if not needs.base or not needs.base <= self.resident.base:
            return 0
        return 2 if needs.stack == self.resident.stack else 1


@dataclass(slots=True)
class Placement:
    """Chooses, and remembers how often a job was passed over."""

    _passed: dict[str, int] = field(default_factory=lambda: dict[str, int]())

    def choose(self, waiting: Sequence[Waiting], seats: Iterable[Seat]) -> list[tuple[str, str]]:
        """(job, worker) pairs. waiting: in the order of the queue; a lower priority never goes before a
        higher one, and a job is passed over at most PATIENCE times."""
        free = {seat.name: seat for seat in seats}
        chosen: dict[str, str] = {}
        for level in _levels(waiting):
            overdue = [w for w in level if self._passed.get(w.id, 0) >= PATIENCE]
            for job in overdue:
                _seat(job, free, chosen, at_least=0)
            for fit in (2, 1, 0):
                for job in level:
                    if job.id not in chosen:
                        _seat(job, free, chosen, at_least=fit)
        self._note(waiting, chosen)
        return [(w.id, chosen[w.id]) for w in waiting if w.id in chosen]

    def _note(self, waiting: Sequence[Waiting], chosen: dict[str, str]) -> None:
        last = max((i for i, w in enumerate(waiting) if w.id in chosen), default=0)
        known = self._passed
        self._passed = {w.id: known.get(w.id, 0) for w in waiting if w.id not in chosen}
        for job in waiting[:last]:
            if job.id in self._passed:
                self._passed[job.id] += 1


def _seat(job: Waiting, free: dict[str, Seat], chosen: dict[str, str], *, at_least: int) -> None:
    if not free:
        return
    # What holds nothing is emptier than what holds other models; among equals, the longest idle.
    best = max(free.values(), key=lambda s: (s.fits(job.needs), not s.resident.base, -s.idle_since))
    if best.fits(job.needs) >= at_least:
        chosen[job.id] = best.name
        del free[best.name]


def _levels(waiting: Sequence[Waiting]) -> list[list[Waiting]]:
    """The jobs by priority, in the order of the queue."""
    levels: dict[int, list[Waiting]] = {}
    for job in waiting:
        levels.setdefault(job.priority, []).append(job)
    return [levels[p] for p in sorted(levels, reverse=True)]
