"""Jobs on disk: SQLite, write-ahead log, every commit flushed. What the methods return is committed.

Not for several threads at once; `writer.StoreThread` gives the store to a thread of its own.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.errors import InputError, LoraloomError
from loraloom.jobs.job import Job, Request, Status
from loraloom.jobs.schema import migrate
from loraloom.workflow.graph import JSON

MAX_PENDING = 10_000
MAX_FINISHED = 10_000
_EVENTS_PER_ATTEMPT = 1_000_000

_COLUMNS = "id, number, priority, status, created, started, finished, claims, deaths, request, result, error"


class QueueFull(LoraloomError):
    """So many jobs wait that no more are taken."""


class JobExists(InputError):
    """A client's id for its new job is the id of another job."""


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


class Store:
    """The jobs of one folder."""

    def __init__(
        self, path: Path, *, max_pending: int = MAX_PENDING, max_finished: int = MAX_FINISHED
    ) -> None:
        self._max_pending, self._max_finished = max_pending, max_finished
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA busy_timeout = 5000")
            migrate(self._db)
            (highest,) = self._db.execute("SELECT max(abs(number)) FROM jobs").fetchone()
            self._highest: float = -1 if highest is None else highest
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"the queue file {path} cannot be opened ({error}). If it is damaged, move it away: "
                "the server then starts with an empty queue; your pictures are not in it."
            ) from error

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Several calls that take effect together; nests."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        """Part of a transaction that is undone alone when it fails."""
        self._db.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO part")
            raise
        finally:
            self._db.execute("RELEASE part")

    # ---- The queue ----

    def submit(
        self, request: Request, *, job_id: str | None = None, number: float | None = None,
        front: bool = False, priority: int = 0,
    ) -> Job:  # fmt: skip
        """Queue a job. Raises QueueFull, or JobExists for an id that is taken."""
        with self.transaction():
            if self.count(Status.PENDING) >= self._max_pending:
                raise QueueFull(f"{self._max_pending} jobs are waiting; try again when some have finished")
            found_id = job_id or str(uuid.uuid4())
            if self.find(found_id) is not None:
                raise JobExists(f"there is already a job with the id {found_id}")
            place = self.next_number() if number is None else number
            job = Job(found_id, -place if front else place, request, priority, created=time.time())
            self._write(job)
        return job

    def claim(self) -> Job | None:
        """The next job, now running; None when none waits."""
        with self.transaction():
            job = self._one("status = 'pending' ORDER BY priority DESC, number LIMIT 1")
            return None if job is None else self._save(job.claim(time.time()))

    def change(
        self, job_id: str, change: Callable[[Job], Job], events: Sequence[tuple[str, Mapping[str, JSON]]] = ()
    ) -> Job:
        """Apply a transition of `Job` and add the events that tell of it, together.

        Raises UnknownJob, or WrongStatus when the transition does not allow it.
        """
        with self.transaction():
            job = self._save(change(self.get(job_id)))
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

    def recover(self) -> list[Job]:
        """After a start: jobs that were running wait again."""
        with self.transaction():
            found = [job.interrupted() for job in self.jobs((Status.RUNNING,))]
            for job in found:
                self._save(job)
                self.add_events(job, [("requeued", {"reason": "the server was restarted"})])
        return found

    def delete(self, job_ids: Sequence[str]) -> list[Job]:
        """Forget finished jobs (others are left alone); those that were forgotten."""
        with self.transaction():
            found = [j for i in job_ids if (j := self.find(i)) is not None and j.status.final]
            for job in found:
                self._db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        return found

    def clear_finished(self) -> None:
        self._db.execute("DELETE FROM jobs WHERE finished IS NOT NULL")

    def prune(self) -> None:
        """Forget the oldest finished jobs beyond the limit."""
        self._db.execute(
            "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE finished IS NOT NULL "
            "ORDER BY finished DESC LIMIT -1 OFFSET ?)",
            (self._max_finished,),
        )

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
        return self._many("status = 'pending' ORDER BY priority DESC, number LIMIT ?", limit)

    def history(self, limit: int = -1, offset: int = 0) -> list[Job]:
        """Jobs that were begun and have finished, the earliest first. A negative offset means the latest."""
        begun = "finished IS NOT NULL AND started IS NOT NULL"
        if offset < 0:
            return self._many(f"{begun} ORDER BY finished DESC LIMIT ?", limit)[::-1]
        return self._many(f"{begun} ORDER BY finished LIMIT ? OFFSET ?", limit, offset)

    def jobs(
        self, statuses: Sequence[Status], limit: int = -1, offset: int = 0, *, ascending: bool = False
    ) -> list[Job]:
        """Jobs with one of these statuses, by creation, the latest first unless `ascending`."""
        marks, way = ", ".join("?" * len(statuses)), "ASC" if ascending else "DESC"
        return self._many(
            f"status IN ({marks}) ORDER BY created {way}, number {way} LIMIT ? OFFSET ?",
            *statuses,
            limit,
            offset,
        )

    # ---- Events ----

    def add_events(self, job: Job, events: Sequence[tuple[str, Mapping[str, JSON]]]) -> None:
        with self.transaction():
            (last,) = self._db.execute("SELECT max(sequence) FROM events WHERE job = ?", (job.id,)).fetchone()
            first = max((last or 0) + 1, first_sequence(job))
            now = time.time()
            self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                [(job.id, first + i, now, kind, _text(payload)) for i, (kind, payload) in enumerate(events)],
            )

    def events(self, job_id: str, after: int = 0) -> list[JobEvent]:
        rows = self._db.execute(
            "SELECT job, sequence, at, kind, payload FROM events "
            "WHERE job = ? AND sequence > ? ORDER BY sequence",
            (job_id, after),
        )
        return [JobEvent(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]

    # ---- Webhooks ----

    def due_deliveries(self, now: float) -> list[tuple[str, str, int]]:
        """(job id, URL, attempts so far) of every webhook that should be called now."""
        return self._db.execute(
            "SELECT job, url, attempts FROM deliveries WHERE due <= ? ORDER BY due LIMIT 20", (now,)
        ).fetchall()

    def delivered(self, job_id: str) -> None:
        self._db.execute("DELETE FROM deliveries WHERE job = ?", (job_id,))

    def postpone_delivery(self, job_id: str, due: float) -> None:
        self._db.execute(
            "UPDATE deliveries SET due = ?, attempts = attempts + 1 WHERE job = ?", (due, job_id)
        )

    # ---- Rows ----

    def _save(self, job: Job) -> Job:
        self._db.execute("DELETE FROM deliveries WHERE job = ?", (job.id,))
        self._db.execute(
            "UPDATE jobs SET number = ?, priority = ?, status = ?, started = ?, finished = ?, claims = ?, "
            "deaths = ?, result = ?, error = ? WHERE id = ?",
            (
                job.number, job.priority, job.status, job.started, job.finished, job.claims, job.deaths,
                _text(job.result), _text(job.error), job.id,
            ),
        )  # fmt: skip
        return job

    def _write(self, job: Job) -> None:
        self._db.execute(
            f"INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job.id, job.number, job.priority, job.status, job.created, job.started, job.finished,
                job.claims, job.deaths, _text(job.request.to_json()), _text(job.result), _text(job.error),
            ),
        )  # fmt: skip

    def _one(self, where: str, *values: object) -> Job | None:
        return next(iter(self._many(where, *values)), None)

    def _many(self, where: str, *values: object) -> list[Job]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where}", values)
        return [_job(row) for row in rows]


def first_sequence(job: Job) -> int:
    """The sequence number of the first event of a job's present attempt.

    Events of a running job are only written with its result, so an attempt that was cut off leaves numbers
    that readers have seen and the store has not: every attempt gets a range of its own.
    """
    return job.claims * _EVENTS_PER_ATTEMPT + 1


def _text(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _job(row: tuple[Any, ...]) -> Job:
    return Job(
        id=row[0],
        number=row[1],
        priority=row[2],
        status=Status(row[3]),
        created=row[4],
        started=row[5],
        finished=row[6],
        claims=row[7],
        deaths=row[8],
        request=Request.from_json(json.loads(row[9])),
        result=None if row[10] is None else json.loads(row[10]),
        error=None if row[11] is None else json.loads(row[11]),
    )
