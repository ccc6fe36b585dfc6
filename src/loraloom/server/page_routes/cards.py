"""Jobs as a person sees them: named by their prompt, with pictures, receipts, and errors in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, cast

from fastapi import FastAPI, Query
from pydantic import BaseModel, Field

from loraloom.errors import WorkflowError
from loraloom.jobs.job import Job, Status
from loraloom.jobs.live import LiveJob
from loraloom.server.api import JobStatus, OutputFile, outputs_of
from loraloom.server.page_routes.words import trouble_of
from loraloom.server.state import ServerState
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.drawing import settings_of, title_of
from loraloom.workflow.graph import Graph

TITLE_LENGTH = 400
DRAWN = "loraloom_draw"
"""Key of `extra_data` under which a drawing's settings stand, LoRAs that are switched off included."""


class TroubleView(BaseModel):
    what: str
    advice: str = Field(description="What to do about it.")
    where: str
    details: str


class Step(BaseModel):
    """How far the running node is."""

    node: str
    value: float
    max: float


class Card(BaseModel):
    """One job. title: its prompt. settings: those of a drawing, where it amounts to one."""

    id: str
    status: JobStatus
    title: str
    number: float
    priority: int
    created: float
    started: float | None
    finished: float | None
    pictures: list[OutputFile]
    receipts: list[dict[str, Any]]
    warnings: list[str]
    trouble: TroubleView | None
    settings: dict[str, Any] | None
    step: Step | None = None


class Cards(BaseModel):
    """waiting: in the order in which they will run; finished: the latest first, `finished_total` in all."""

    running: list[Card]
    waiting: list[Card]
    waiting_total: int
    finished: list[Card]
    finished_total: int
    paused: bool
    worker: dict[str, Any]


def card_of(job: Job, live: LiveJob | None = None) -> Card:
    result = cast("dict[str, Any]", job.result or {})
    graph = _graph(job)
    trouble = trouble_of(job.error)
    return Card(
        id=job.id,
        status=cast("JobStatus", str(job.status)),
        title=(title_of(graph) if graph else "")[:TITLE_LENGTH],
        number=job.number,
        priority=job.priority,
        created=job.created,
        started=job.started,
        finished=job.finished,
        pictures=outputs_of(result.get("outputs", {})),
        receipts=result.get("receipts", []),
        warnings=result.get("warnings", []),
        trouble=TroubleView(**asdict(trouble)) if trouble else None,
        settings=_settings(job, graph),
        step=None if live is None else _step(live),
    )


def _graph(job: Job) -> Graph | None:
    try:
        return parse_api(dict(job.request.prompt))
    except WorkflowError:
        return None


def _settings(job: Job, graph: Graph | None) -> dict[str, Any] | None:
    drawn = job.request.extra_data.get(DRAWN)
    if isinstance(drawn, dict):
        return cast("dict[str, Any]", drawn)
    found = settings_of(graph) if graph else None
    return asdict(found) if found else None


def _step(live: LiveJob) -> Step | None:
    states = cast("Mapping[str, Mapping[str, Any]]", live.states)
    for node, known in states.items():
        if known["state"] == "running" and known["max"] > 1:
            return Step(node=node, value=known["value"], max=known["max"])
    return None


def add(api: FastAPI, state: ServerState) -> None:
    dispatcher = state.dispatcher
    final = [status for status in Status if status.final]

    @api.get("/cards")
    async def cards(
        waiting: Annotated[int, Query(ge=0, le=10_000)] = 200,
        finished: Annotated[int, Query(ge=0, le=1_000)] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> Cards:
        """The queue as a person sees it."""
        running, ahead, ahead_total, past, past_total = await dispatcher.read(
            lambda s: (
                s.jobs((Status.RUNNING,)), s.waiting(waiting), s.count(Status.PENDING),
                s.jobs(final, finished, offset), s.count(*final),
            )
        )  # fmt: skip
        return Cards(
            running=[card_of(job, dispatcher.running.get(job.id)) for job in running],
            waiting=[card_of(job) for job in ahead],
            waiting_total=ahead_total,
            finished=[card_of(job) for job in past],
            finished_total=past_total,
            paused=dispatcher.paused,
            worker=cast("dict[str, Any]", dict(dispatcher.worker_info)),
        )

    @api.get("/cards/{job_id}", responses={404: {}})
    async def card(job_id: str) -> Card:
        """A job as a person sees it."""
        return card_of(await dispatcher.read(lambda s: s.get(job_id)), dispatcher.running.get(job_id))

    @api.post("/cards/clear", status_code=204)
    async def clear_finished() -> None:
        """Forget all finished jobs. Their pictures stay."""
        await dispatcher.call(lambda s: s.clear_finished())

    @api.post("/cards/cancel", status_code=204)
    async def cancel_waiting() -> None:
        """Cancel all jobs that wait; the running one goes on."""
        await dispatcher.cancel_waiting()
