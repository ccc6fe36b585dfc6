"""The order to run jobs, as it goes to a worker by whatever way: one job by itself, or several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from loraloom.workflow.graph import JSON

Entry: TypeAlias = Mapping[str, JSON]
"""What an order says of a job: "job", its id; "request"; "previews"."""

RUN = ("run", "run_together")

ENDS = ("completed", "failed", "cancelled")
"""What a worker says last of a job."""


def order_of(jobs: Sequence[Entry], rows: int) -> dict[str, JSON]:
    """The order to run these jobs. rows: of a batch at most, where there are several."""
    if len(jobs) == 1:
        return {**jobs[0], "order": "run"}
    return {"order": "run_together", "rows": rows, "jobs": [dict(job) for job in jobs]}


def jobs_of(order: Mapping[str, JSON]) -> list[Entry]:
    """The jobs of an order to run some."""
    return [order] if order["order"] == "run" else cast("list[Entry]", order["jobs"])


def rows_of(order: Mapping[str, JSON]) -> int:
    """How many rows of a batch its jobs may be at most."""
    return cast("int", order.get("rows", 1))
