"""Webhooks that have to be called: which, and when."""

from __future__ import annotations

from loraloom.jobs.connection import Connection

_SECONDS_TO_POSTPONE = 3600.0


class Deliveries(Connection):
    """The table of webhooks of jobs that have ended."""

    def due_deliveries(self, now: float, limit: int = 20) -> list[tuple[str, str, int]]:
        """(job id, URL, attempts so far) of every webhook that should be called now."""
        # A date far ahead was set before the clock was set back.
        return self._db.execute(
            "SELECT job, url, attempts FROM deliveries WHERE due <= ? OR due > ? ORDER BY due LIMIT ?",
            (now, now + _SECONDS_TO_POSTPONE, limit),
        ).fetchall()

    def delivered(self, job_id: str) -> None:
        self._db.execute("DELETE FROM deliveries WHERE job = ?", (job_id,))

    def postpone_delivery(self, job_id: str, due: float) -> None:
        self._db.execute(
            "UPDATE deliveries SET due = ?, attempts = attempts + 1 WHERE job = ?", (due, job_id)
        )
