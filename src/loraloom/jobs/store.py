"""Jobs on disk: SQLite, write-ahead log, every commit flushed. What the methods return is committed.

Not for several threads at once; `writer.StoreThread` gives each store to a thread of its own.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import InputError, LoraloomError
from loraloom.jobs.connection import Connection
from loraloom.jobs.database import open_for_reading, open_for_writing
from loraloom.jobs.deliveries import Deliveries
from loraloom.jobs.job import Job, Request, Status
from loraloom.jobs.rows import COLUMNS, WITHOUT_PROMPT, read_row
from loraloom.workflow.graph import JSON
from loraloom.workflow.json_text import write_json

MAX_PENDING = 10_000
MAX_FINISHED = 10_000
MAX_BYTES = 4 << 30
_LARGE = 100_000
_EVENTS_PER_ATTEMPT = 1_000_000
_IN_TURN = "status = 'pending' ORDER BY priority DESC, number"


class QueueFull(LoraloomError):
    """So many jobs wait that no more are taken."""


class JobExists(InputError):
    """A client's id for its new job is the id of another job."""


class LeaseOver(LoraloomError):
    """A worker's lease of a job has ended; another may have it."""


class UnknownJob(InputError):
    """No job has this id (any more)."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One lasting event of a job. Sequence numbers only grow, also when the job begins anew."""

    job: str
    sequence: int
    at: float
    kind: str
    payload: Mapping[str, JSON]


class Store(Deliveries):
    """The jobs of one folder."""

    def __init__(
        self, path: Path, *, max_pending: int = MAX_PENDING, max_finished: int = MAX_FINISHED
    ) -> None:
        """Open or make the file; raises QueueFileError when it cannot be used."""
        super().__init__(open_for_writing(path))
        self._use(max_pending, max_finished)
        (highest,) = self._db.execute("SELECT max(abs(number)) FROM jobs").fetchone()
        self._highest = -1 if highest is None else highest

    def _use(self, max_pending: int, max_finished: int) -> None:
        self._max_pending, self._max_finished = max_pending, max_finished
        self._highest: float = -1
        self._known_waiting: int | None = None

    @classmethod
    def reader(cls, path: Path) -> Store:
        """The same jobs through a connection that cannot write."""
        found = cls.__new__(cls)
        Connection.__init__(found, open_for_reading(path))
        found._use(0, 0)
        return found

    def _undone(self) -> None:
        self._known_waiting = None

    # ---- The queue ----

    def submit(
        self, request: Request, *, job_id: str | None = None, number: float | None = None,
        front: bool = False, priority: int = 0,
    ) -> Job:  # fmt: skip
        """Queue a job. Raises QueueFull, or JobExists for an id that is taken."""
        with self.transaction():
            if self._waiting_count() >= self._max_pending:
                raise QueueFull(f"{self._max_pending} jobs are waiting; try again when some have finished")
            text = write_json(request.to_json())
            if len(text) > _LARGE and self._used_bytes() > MAX_BYTES:
                raise QueueFull("the queue's file takes no more jobs of this size; try again later")
            found_id = job_id or str(uuid.uuid4())
            place = self.next_number() if number is None else number
            job = Job(found_id, -place if front else place, request, priority, created=time.time())
            try:
                self._write(job, text)
            except sqlite3.IntegrityError as error:
                raise JobExists(f"there is already a job with the id {found_id}") from error
            self._known_waiting = self._waiting_count() + 1
        return job

    def claim(self, place: str | None = None) -> Job | None:
        """The next job, now running; None when none waits. One that cannot be read is put aside."""
        with self.transaction():
            while (job := self._one(f"{_IN_TURN} LIMIT 1")) is not None:
                if (claimed := self._claimed(job, place)) is not None:
                    return claimed
        return None

    def claim_these(self, wanted: Sequence[tuple[str, str]]) -> list[Job]:
        """Those of these jobs, each with its place, that still wait and can be read, now running."""
        with self.transaction():
            found = ((self.find(job_id), place) for job_id, place in wanted)
            waiting = ((job, place) for job, place in found if job is not None)
            return [c for job, place in waiting if (c := self._claimed(job, place)) is not None]

    def _claimed(self, job: Job, place: str | None) -> Job | None:
        if job.status is Status.PENDING:
            return self._save(job.claim(time.time(), place))
        if job.error is not None and job.error.get("type") == "unreadable":
            self._save(job)
            self.add_events(job, [("quarantined", job.error)])
        return None

    def change(
        self, job_id: str, change: Callable[[Job], Job], events: Sequence[tuple[str, Mapping[str, JSON]]] = ()
    ) -> Job:
        """Apply a transition of `Job` and add the events that tell of it, together.

        Raises UnknownJob, or WrongStatus when the transition does not allow it.
        """
        with self.transaction():
            return self._closed(change(self.get(job_id)), events)

    def settle(
        self,
        lease: Job,
        change: Callable[[Job], Job],
        events: Sequence[tuple[str, Mapping[str, JSON]]] = (),
        publications: Sequence[tuple[str, str]] = (),
    ) -> Job:
        """Like `change`, for the job as it was claimed: what comes of a lease that is over changes nothing.

        publications: (passing name, own name) of files that the job has made, kept with it until `published`.
        Raises LeaseOver.
        """
        with self.transaction():
            job = self.find(lease.id)
            if job is None or job.status is not Status.RUNNING or job.claims != lease.claims:
                raise LeaseOver(f"job {lease.id} is not run by {lease.place or 'this worker'} any more")
            self._db.executemany(
                "INSERT INTO publications (staged, job, final) VALUES (?, ?, ?)",
                [(staged, job.id, final) for staged, final in publications],
            )
            return self._closed(change(job), events)

    def _closed(self, job: Job, events: Sequence[tuple[str, Mapping[str, JSON]]]) -> Job:
        """Keep a job as it is now, its events, and the webhook that is due when it has ended."""
        self._save(job)
        self.add_events(job, events)
        if job.status.final and job.request.webhook:
            self._db.execute(
                "INSERT OR REPLACE INTO deliveries (job, url, due) VALUES (?, ?, ?)",
                (job.id, job.request.webhook, time.time()),
            )
        return job

    def next_number(self) -> float:
        """A number behind all others."""
        self._highest += 1
        return self._highest

    def cancel_waiting(self, job_ids: Sequence[str] | None, limit: int) -> list[Job]:
        """Cancel those of these jobs (None: all) that wait, at most `limit`; those that were cancelled,
        without their prompts."""
        with self.transaction():
            now = time.time()
            if job_ids is None:
                found = self._many(f"{_IN_TURN} LIMIT ?", limit, columns=WITHOUT_PROMPT)
            else:
                named = (self._many("id = ?", i, columns=WITHOUT_PROMPT) for i in job_ids[:limit])
                found = [job for jobs in named for job in jobs if job.status is Status.PENDING]
            return [
                self._closed(job.stop(now) if job.status is Status.PENDING else job, [("cancelled", {})])
                for job in found
            ]

    def recover(self, fault: str | None = None, lost: Callable[[Job], bool] = lambda job: True) -> list[Job]:
        """Jobs that are called running and that no worker runs wait again: after a start, or after a fault of
        the server's own, which costs them an attempt. lost: whether a job is among them."""
        with self.transaction():
            return [self._recovered(job, fault) for job in self.jobs((Status.RUNNING,)) if lost(job)]

    def _recovered(self, job: Job, fault: str | None) -> Job:
        if job.status is not Status.RUNNING:  # it cannot be read
            return self._closed(job, [("quarantined", job.error or {})])
        after = job.interrupted() if fault is None else job.worker_died(time.time(), fault)
        kind = "requeued" if after.status is Status.PENDING else "quarantined"
        return self._closed(after, [(kind, {"reason": fault or "the server was restarted"})])

    def delete(self, job_ids: Sequence[str]) -> list[Job]:
        """Forget finished jobs (others are left alone); those that were forgotten."""
        with self.transaction():
            found = [j for i in job_ids if (j := self.find(i)) is not None and j.status.final]
            for job in found:
                self._db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        return found

    def clear_finished(self) -> None:
        self._db.execute("DELETE FROM jobs WHERE ended IS NOT NULL")

    def prune(self) -> None:
        """Forget the jobs that ended first: beyond the limit, a hundredth of it at once, as this looks at
        all that are remembered; and a hundredth of them when the file is too large."""
        ended = "FROM jobs WHERE ended IS NOT NULL"
        (first,) = self._db.execute(f"SELECT min(ended) {ended}").fetchone()
        (last,) = self._db.execute(f"SELECT max(ended) {ended}").fetchone()
        if first is None:
            return
        if last - first >= self._max_finished + self._max_finished // 100:
            which, count = "ORDER BY ended DESC LIMIT -1 OFFSET ?", self._max_finished
        elif self._used_bytes() > MAX_BYTES:
            which, count = "ORDER BY ended LIMIT ?", 1 + (last - first) // 100
        else:
            return
        self._db.execute(f"DELETE FROM jobs WHERE id IN (SELECT id {ended} {which})", (count,))

    def _used_bytes(self) -> int:
        """Of the file, without what is free for other rows."""
        used, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (used - free) * size

    # ---- Reading ----

    def find(self, job_id: str) -> Job | None:
        return self._one("id = ?", job_id)

    def get(self, job_id: str) -> Job:
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(f"there is no job {job_id}")
        return job

    def count(self, *statuses: Status) -> int:
        marks = ", ".join("?" * len(statuses))
        (count,) = self._db.execute(
            f"SELECT count(*) FROM jobs WHERE status IN ({marks})", statuses
        ).fetchone()
        return count

    def waiting(self, limit: int = -1) -> list[Job]:
        """Pending jobs, in the order in which they will run."""
        return self._many(f"{_IN_TURN} LIMIT ?", limit)

    def waiting_ids(self, limit: int) -> list[tuple[str, int]]:
        """(id, priority) of pending jobs, in the order in which they will run."""
        return self._db.execute(
            f"SELECT id, priority FROM jobs WHERE {_IN_TURN} LIMIT ?", (limit,)
        ).fetchall()

    def some(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of these jobs that there are."""
        return self._many(f"id IN ({', '.join('?' * len(job_ids))})", *job_ids)

    def history(self, limit: int = -1, offset: int = 0) -> list[Job]:
        """Jobs that were begun and have finished, the earliest first. A negative offset means the latest."""
        return self.in_order(self.history_ids(limit, offset))

    def history_ids(self, limit: int = -1, offset: int = 0) -> list[str]:
        """The ids of `history`."""
        begun = "SELECT id FROM jobs WHERE ended IS NOT NULL AND started IS NOT NULL"
        if offset < 0:
            rows = self._db.execute(f"{begun} ORDER BY ended DESC LIMIT ?", (limit,)).fetchall()[::-1]
        else:
            rows = self._db.execute(f"{begun} ORDER BY ended LIMIT ? OFFSET ?", (limit, offset)).fetchall()
        return [row[0] for row in rows]

    def in_order(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of these jobs that there are, in this order."""
        return [job for job_id in job_ids if (job := self.find(job_id)) is not None]

    def jobs(
        self, statuses: Sequence[Status], limit: int = -1, offset: int = 0, *, ascending: bool = False
    ) -> list[Job]:
        """Jobs with one of these statuses, by creation, the latest first unless `ascending`."""
        marks, way = ", ".join("?" * len(statuses)), "ASC" if ascending else "DESC"
        return self._many(
            f"status IN ({marks}) ORDER BY rowid {way} LIMIT ? OFFSET ?",
            *statuses,
            limit,
            offset,
        )

    def joined(self, expression: str, where: str, *values: object) -> str:
        """A SQL expression of every job that matches, with commas between.

        SQLite makes the text in one step: ten thousand rows that come to Python one by one would each have to
        wait for the interpreter's lock.
        """
        (text,) = self._db.execute(
            f"SELECT group_concat(item, ',') FROM (SELECT {expression} AS item FROM jobs WHERE {where})",
            values,
        ).fetchone()
        return text or ""

    def sizes(self, where: str) -> list[tuple[str, int]]:
        """(id, letters of its request) of every job that matches."""
        return self._db.execute(f"SELECT id, length(request) FROM jobs WHERE {where}").fetchall()

    # ---- Settings ----

    def setting(self, name: str) -> JSON:
        """A value that outlasts the server; None when it was never set."""
        row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_setting(self, name: str, value: JSON) -> None:
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, write_json(value)))

    # ---- Events ----

    def add_events(self, job: Job, events: Sequence[tuple[str, Mapping[str, JSON]]]) -> None:
        if not events:
            return
        with self.transaction():
            (last,) = self._db.execute("SELECT max(sequence) FROM events WHERE job = ?", (job.id,)).fetchone()
            first = max((last or 0) + 1, first_sequence(job))
            now = time.time()
            self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                [
                    (job.id, first + i, now, kind, write_json(payload))
                    for i, (kind, payload) in enumerate(events)
                ],
            )

    def events(self, job_id: str, after: int = 0) -> list[JobEvent]:
        rows = self._db.execute(
            "SELECT job, sequence, at, kind, payload FROM events "
            "WHERE job = ? AND sequence > ? ORDER BY sequence",
            (job_id, after),
        )
        return [JobEvent(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]

    # ---- Files that get their names ----

    def publications(self) -> list[tuple[str, str, str]]:
        """(job id, passing name, own name) of every file that has not got its own name yet."""
        return self._db.execute("SELECT job, staged, final FROM publications ORDER BY rowid").fetchall()

    def published(self, staged: Sequence[str]) -> None:
        self._db.executemany("DELETE FROM publications WHERE staged = ?", [(name,) for name in staged])

    def rewrite(self, job_id: str, change: Callable[[JSON], JSON]) -> None:
        """Change what is kept of a finished job and its events."""
        with self.transaction():
            job = self.find(job_id)
            if job is None or job.result is None:
                return
            result = write_json(change(dict(job.result)))
            self._db.execute("UPDATE jobs SET result = ? WHERE id = ?", (result, job_id))
            self._db.executemany(
                "UPDATE events SET payload = ? WHERE job = ? AND sequence = ?",
                [(write_json(change(dict(e.payload))), job_id, e.sequence) for e in self.events(job_id)],
            )

    def warn(self, job_id: str, text: str) -> None:
        """Add a warning to what is kept of a finished job; nothing when it is forgotten."""
        with self.transaction():
            job = self.find(job_id)
            if job is None or not job.status.final:
                return
            result: dict[str, JSON] = dict(job.result or {})
            known = result.get("warnings")
            result["warnings"] = [*(known if isinstance(known, list) else ()), text]
            self._db.execute("UPDATE jobs SET result = ? WHERE id = ?", (write_json(result), job_id))
            self.add_events(job, [("warning", {"node": None, "message": text})])

    # ---- Rows ----

    def _waiting_count(self) -> int:
        """How many jobs wait; counted once, as 64 clients ask in one transaction."""
        if self._known_waiting is None:
            self._known_waiting = self.count(Status.PENDING)
        return self._known_waiting

    def _save(self, job: Job) -> Job:
        self._known_waiting = None
        self._db.execute("DELETE FROM deliveries WHERE job = ?", (job.id,))
        self._db.execute(
            "UPDATE jobs SET number = ?, priority = ?, status = ?, started = ?, finished = ?, claims = ?, "
            "deaths = ?, result = ?, error = ?, place = ?, losses = ?, "
            "ended = CASE WHEN ? THEN coalesce((SELECT max(ended) FROM jobs WHERE ended IS NOT NULL), 0) + 1 "
            "END WHERE id = ?",
            (
                job.number, job.priority, job.status, job.started, job.finished, job.claims, job.deaths,
                _text(job.result), _text(job.error), job.place, job.losses,
                job.status.final, job.id,
            ),
        )  # fmt: skip
        return job

    def _write(self, job: Job, request: str) -> None:
        self._db.execute(
            f"INSERT INTO jobs ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job.id, job.number, job.priority, job.status, job.created, job.started, job.finished,
                job.claims, job.deaths, request, _text(job.result), _text(job.error),
                job.place, job.losses,
            ),
        )  # fmt: skip

    def _one(self, where: str, *values: object) -> Job | None:
        return next(iter(self._many(where, *values)), None)

    def _many(self, where: str, *values: object, columns: str = COLUMNS) -> list[Job]:
        rows = self._db.execute(f"SELECT {columns} FROM jobs WHERE {where}", values)
        return [read_row(row) for row in rows]


def first_sequence(job: Job) -> int:
    """The sequence number of the first event of a job's present attempt.

    Events of a running job are only written with its result, so an attempt that was cut off leaves numbers
    that readers have seen and the store has not: every attempt gets a range of its own.
    """
    return job.claims * _EVENTS_PER_ATTEMPT + 1


def _text(value: object) -> str | None:
    return None if value is None else write_json(value)
