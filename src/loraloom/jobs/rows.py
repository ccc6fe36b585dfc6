"""A row of the table of jobs as a `Job`, also when somebody or something has damaged it."""

from __future__ import annotations

import json
from typing import Any, cast

from loraloom.jobs.job import Job, Request, Status
from loraloom.workflow.graph import JSON

COLUMNS = (
    "id, number, priority, status, created, started, finished, claims, deaths, request, result, error, "
    "place, losses"
)

WITHOUT_PROMPT = COLUMNS.replace(
    "request",
    "CASE WHEN json_valid(request) "
    "THEN json_set(request, '$.prompt', json('{}'), '$.extra_data', json('{}')) ELSE request END",
)
"""For what looks at many jobs and at the prompt, which may be of megabytes, of none."""


def read_row(row: tuple[Any, ...]) -> Job:
    """The job of a row with these columns. One that cannot be read has an empty request and is quarantined,
    with the reason as its error."""
    try:
        return Job(
            id=row[0],
            number=float(row[1]),
            priority=int(row[2]),
            status=Status(row[3]),
            created=float(row[4]),
            started=None if row[5] is None else float(row[5]),
            finished=None if row[6] is None else float(row[6]),
            claims=int(row[7]),
            deaths=int(row[8]),
            request=Request.from_json(_object(row[9])),
            result=None if row[10] is None else _object(row[10]),
            error=None if row[11] is None else _object(row[11]),
            place=None if row[12] is None else str(row[12]),
            losses=int(row[13]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        return _unreadable(row, error)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(value, dict):
        raise TypeError(f"a JSON {type(value).__name__} stands where an object is expected")
    return cast("dict[str, Any]", value)


def _unreadable(row: tuple[Any, ...], error: Exception) -> Job:
    said: dict[str, JSON] = {
        "type": "unreadable",
        "message": f"what is stored of this job cannot be read ({type(error).__name__}: {error}); "
        "submit it anew",
    }
    number, created, started, finished = (
        float(row[i]) if isinstance(row[i], int | float) else 0.0 for i in (1, 4, 5, 6)
    )
    return Job(row[0], number, Request({}), 0, Status.QUARANTINED, created, started, finished, error=said)
