"""A row of the table of jobs is read, whatever stands in it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from loraloom.jobs import frames
from loraloom.jobs.job import Request, Status
from loraloom.jobs.rows import COLUMNS, read_row

Cell = st.none() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5)
GOOD: tuple[Any, ...] = (
    "a", 1.0, 0, "completed", 1.0, 2.0, 3.0, 1, 0, json.dumps(Request({}).to_json()), "{}", None, "here-0", 0,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.integers(1, len(GOOD) - 1), Cell, max_size=4))
@example({7: float("inf")})
@example({1: float("inf"), 13: float("-inf")})
def test_a_damaged_row_is_a_job_that_says_so(damage: dict[int, Any]) -> None:
    assert len(GOOD) == len(COLUMNS.split(","))
    job = read_row(tuple(damage.get(place, value) for place, value in enumerate(GOOD)))
    assert job.id == "a"
    assert isinstance(job.status, Status)
    if job.error is not None and job.error.get("type") == "unreadable":
        assert job.status is Status.QUARANTINED
        assert "submit it anew" in str(job.error["message"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers() | st.booleans()), st.binary())
def test_a_frame_comes_back_as_it_was_sent(message: dict[str, Any], tail: bytes) -> None:
    import io

    data = frames.encode(message, tail)
    file = io.BytesIO(data * 2)
    assert frames.read(file) == frames.read(file) == (json.loads(json.dumps(message)), tail)
    assert frames.read(file) is None
    assert frames.read(io.BytesIO(data[:-1])) is None
