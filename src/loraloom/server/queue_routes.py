"""ComfyUI's routes around the queue: prompts, queue, history, jobs, interruption."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loraloom.jobs.job import Job
from loraloom.jobs.live import LiveJob
from loraloom.jobs.store import JobExists, QueueFull, Store
from loraloom.server import failures, prompts, wire
from loraloom.server.answers import Answer
from loraloom.server.bodies import read_object
from loraloom.server.state import ServerState, state_of
from loraloom.workflow.graph import JSON
from loraloom.workflow.json_text import write_json

_MANY = 100_000
_TOGETHER = 20
_MOST_JOBS = 1000


async def get_prompt(request: Request) -> Response:
    return Answer(wire.status(await state_of(request).remaining())["status"])


async def post_prompt(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request, state.settings.max_json)
    try:
        accepted = await prompts.accept(body, state)
        job = await state.dispatcher.submit(
            accepted.request,
            job_id=prompts.job_id_of(body),
            number=prompts.number_of(body),
            front=body.get("front") is True,
        )
    except prompts.BadPrompt as error:
        return Answer(error.body, 400)
    except JobExists as error:
        return failures.answer(error, prompts.problem("invalid_prompt_id", str(error)).body)
    except QueueFull as error:
        return failures.answer(error, prompts.problem("queue_full", str(error)).body)
    return Answer(
        {"prompt_id": job.id, "number": wire.queue_item(job)[0], "node_errors": accepted.node_errors}
    )


async def get_queue(request: Request) -> Response:
    state = state_of(request)
    whole = await state.queue_listing.json()
    if whole is None:
        return StreamingResponse(state.queue_listing.parts(), media_type="application/json")
    return Response(whole, media_type="application/json")


async def post_queue(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request, state.settings.max_json)
    if body.get("clear") is True:
        await state.dispatcher.cancel_waiting()
    if "delete" in body:
        await state.dispatcher.cancel_waiting(_ids(body, "delete"))
    return Response(status_code=200)


async def get_history(request: Request) -> Response:
    state = state_of(request)
    limit = whole_number(request, "max_items", -1)
    offset = whole_number(request, "offset", -1)

    ids = await state.dispatcher.read(lambda s: s.history_ids(limit, offset))
    return StreamingResponse(_history(state, ids), media_type="application/json")


async def _history(state: ServerState, ids: Sequence[str]) -> AsyncGenerator[str]:
    """The answer, some jobs at a time: ten thousand would hold up everybody else."""
    begun = False
    yield "{"
    for start in range(0, len(ids), _TOGETHER):
        part = ids[start : start + _TOGETHER]
        text = await state.dispatcher.read(lambda s, p=part: _entries(s, p))
        if text:
            yield f",{text}" if begun else text
            begun = True
    yield "}"


def _entries(store: Store, ids: Sequence[str]) -> str:
    found = ((job.id, write_json(wire.history_entry(job))) for job in store.in_order(ids))
    return ",".join(f"{write_json(job_id)}:{entry}" for job_id, entry in found)


async def get_history_one(request: Request) -> Response:
    job_id = str(request.path_params["job_id"])
    job = await state_of(request).dispatcher.read(lambda s: s.find(job_id))
    if job is None or not job.status.final or job.started is None:
        return Answer({})
    return Answer({job.id: wire.history_entry(job)})


async def post_history(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request, state.settings.max_json)
    if body.get("clear") is True:
        await state.dispatcher.call(lambda s: s.clear_finished())
    if "delete" in body:
        ids = _ids(body, "delete")
        await state.dispatcher.call(lambda s: s.delete(ids))
    return Response(status_code=200)


async def get_jobs(request: Request) -> Response:
    state = state_of(request)
    names = [n for n in request.query_params.get("status", "").split(",") if n]
    unknown = [name for name in names if name not in wire.STATUSES]
    if unknown:
        raise HTTPException(400, f"there is no status {unknown[0][:40]!r}; known: {', '.join(wire.STATUSES)}")
    statuses = [s for name in names or wire.STATUSES for s in wire.STATUSES[name]]
    limit, offset = whole_number(request, "limit", 200), whole_number(request, "offset", 0)
    if limit < 0 or offset < 0:
        raise HTTPException(400, "limit and offset must not be negative")
    limit = min(limit, _MOST_JOBS)
    ascending = request.query_params.get("sort_order") == "asc"

    def page(store: Store) -> bytes:
        jobs, total = store.jobs(statuses, limit, offset, ascending=ascending), store.count(*statuses)
        more = offset + len(jobs) < total
        pagination: dict[str, JSON] = {"offset": offset, "limit": limit, "total": total, "has_more": more}
        return write_json({"jobs": [wire.job_item(job) for job in jobs], "pagination": pagination}).encode()

    return Response(await state.dispatcher.read(page), media_type="application/json")


async def get_job(request: Request) -> Response:
    return Answer(wire.job_detail(await job_of(request)))


async def cancel_job(request: Request) -> Response:
    job = await job_of(request)
    return Answer({"cancelled": await state_of(request).dispatcher.cancel(job.id)})


async def cancel_jobs(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request, state.settings.max_json)
    dispatcher = state.dispatcher
    asked = _ids(body, "job_ids")
    cancelled: list[JSON] = [*await dispatcher.cancel_waiting(asked)]
    running = [job_id for job_id in dispatcher.running if job_id in asked]
    cancelled += [job_id for job_id in running if await dispatcher.interrupt(job_id)]
    return Answer({"cancelled": cancelled})


async def interrupt(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request, state.settings.max_json, empty=True)
    job_id = body.get("prompt_id")
    if job_id is not None and not isinstance(job_id, str):
        raise HTTPException(400, "prompt_id must be a text")
    await state.dispatcher.interrupt(job_id)
    return Response(status_code=200)


async def free(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request, state.settings.max_json, empty=True)
    models, memory = body.get("unload_models") is True, body.get("free_memory") is True
    if models or memory:
        await state.dispatcher.let_go(models, memory)
    return Response(status_code=200)


async def job_of(request: Request) -> Job:
    """The job that the path names; HTTPException 404 when there is none."""
    job_id = str(request.path_params["job_id"])
    job = await state_of(request).dispatcher.read(lambda s: s.find(job_id))
    if job is None:
        raise HTTPException(404, f"there is no job {job_id[:80]}")
    return job


def whole_number(request: Request, name: str, default: int) -> int:
    """A number of the query; HTTPException 400 when it is none."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit() or len(text) > 9:
        raise HTTPException(400, f"{name} must be a whole number")
    return int(text)


def _ids(body: Mapping[str, JSON], name: str) -> Sequence[str]:
    given = body.get(name)
    if not isinstance(given, list) or len(given) > _MANY:
        raise HTTPException(400, f"{name} must be a list of ids")
    return [str(i) for i in given if isinstance(i, str | int)]


def routes() -> list[Route]:
    return [
        Route("/prompt", get_prompt, methods=["GET"]),
        Route("/prompt", post_prompt, methods=["POST"]),
        Route("/queue", get_queue, methods=["GET"]),
        Route("/queue", post_queue, methods=["POST"]),
        Route("/history", get_history, methods=["GET"]),
        Route("/history", post_history, methods=["POST"]),
        Route("/history/{job_id}", get_history_one, methods=["GET"]),
        Route("/jobs", get_jobs, methods=["GET"]),
        Route("/jobs/cancel", cancel_jobs, methods=["POST"]),
        Route("/jobs/{job_id}", get_job, methods=["GET"]),
        Route("/jobs/{job_id}/cancel", cancel_job, methods=["POST"]),
        Route("/interrupt", interrupt, methods=["POST"]),
        Route("/free", free, methods=["POST"]),
    ]


async def greeting(state: ServerState, sid: str | None) -> wire.Messages:
    """What a WebSocket client is told first: the queue, its jobs that ended while it was away, and where its
    running job is."""
    messages: wire.Messages = [("status", wire.status(await state.remaining()))]
    if sid is None:
        return messages
    missed = state.hub.ended.take(sid)
    jobs = await state.dispatcher.read(lambda s: [j for i in missed if (j := s.find(i)) is not None])
    for job in jobs:
        if job.status.final:
            messages += wire.ended_messages(job)
    for live in state.dispatcher.running.values():
        if live.job.request.client_id == sid:
            messages += _where(live)
    return messages


def _where(live: LiveJob) -> wire.Messages:
    messages: wire.Messages = [("execution_start", {"prompt_id": live.job.id, "timestamp": live.started_ms})]
    for node, known in live.states.items():
        if known["state"] == "running":
            executing = {"node": node, "display_node": known["display_node_id"], "prompt_id": live.job.id}
            messages.append(("executing", executing))
    return [*messages, wire.progress_state(live.job.id, live.states)]
