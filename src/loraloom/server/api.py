"""Our own interface, under /v1: typed, documented by its OpenAPI schema at /v1/openapi.json.

Imported when it is first asked for, because FastAPI takes longer to import than the rest of the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal, TypeAlias, cast
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from loraloom.engine.failures import FailurePolicy
from loraloom.errors import LoraloomError
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Job, Status
from loraloom.jobs.store import Store
from loraloom.server import failures, prompts
from loraloom.server.answers import Answer
from loraloom.server.bodies import read_object
from loraloom.server.events import queue_state, stream
from loraloom.server.sse import follow
from loraloom.server.state import ServerState

JobStatus: TypeAlias = Literal["pending", "running", "completed", "failed", "cancelled", "quarantined"]


class Refusal(BaseModel):
    """Why a request is not answered otherwise."""

    detail: Any
    type: str | None = Field(None, description="Of what goes away by itself; try again after Retry-After.")


class Trouble(BaseModel):
    """One reason why a workflow cannot run, in ComfyUI's words."""

    type: str
    message: str
    details: str
    extra_info: dict[str, Any]


class NodeTrouble(BaseModel):
    errors: list[Trouble]
    dependent_outputs: list[str] = Field(description="Output nodes that cannot run for it.")
    class_type: str


class WorkflowTrouble(BaseModel):
    error: Trouble
    node_errors: dict[str, NodeTrouble] = Field(description="By node id.")


class WorkflowRefusal(BaseModel):
    """Why a workflow is not queued, though it fits the schema."""

    detail: WorkflowTrouble | list[dict[str, Any]] | str


_REFUSED_WORKFLOW: dict[str, Any] = {
    "model": WorkflowRefusal,
    "description": "The body is no JSON, or the workflow cannot run: it has no output node, an input is"
    " missing or out of its range, a link leads nowhere or in a circle, a node class or a model file is not"
    " there. No schema says this beforehand: what a node takes depends on the server's node packs and files.",
}

# What any operation may answer instead of its own answers.
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body or a parameter cannot be used."},
    401: {"description": "The token is missing."},
    403: {"description": "The request comes from a page or under a name that is not ours."},
    405: {"description": "The path has other methods; see Allow."},
    408: {"model": Refusal, "description": "The body did not come in time."},
    413: {"model": Refusal, "description": "The body is too long."},
    503: {"model": Refusal, "description": "The queue cannot be used at the moment."},
    507: {"model": Refusal, "description": "There is no space left on the disk."},
}


class Submission(BaseModel):
    """A job to run. Give `workflow`, in the editor's or in API format, with at least one output node."""

    model_config = ConfigDict(extra="forbid")
    workflow: dict[str, Any] = Field(min_length=1)
    targets: list[str] | None = Field(None, min_length=1, description="Output nodes to run; all by default.")
    priority: int = Field(0, ge=-1000, le=1000, description="Higher ones run first.")
    front: bool = Field(False, description="Before the other waiting jobs of its priority.")
    id: str | None = Field(None, description="Your own id for the job: letters, digits, dashes.")
    previews: bool = Field(False, description="Send previews with the progress events.")
    webhook: str | None = Field(None, description="Called, signed, when the job has ended.")
    node_failure_policy: FailurePolicy = Field(
        "fail_fast",
        description="What becomes of the other nodes when one fails: the job ends, or those that do not need"
        " it go on.",
    )


class OutputFile(BaseModel):
    node: str
    filename: str
    subfolder: str
    type: str
    url: str = Field(description="Where the file is, relative to the server's root.")


class Partial(BaseModel):
    """How far a job came that went on after failures, by node id."""

    failed: list[str]
    blocked: list[str] = Field(description="Nodes that did not run as they need one that failed.")
    blocked_outputs: list[str] = Field(description="The output nodes among these.")
    outputs: list[str] = Field(description="Output nodes that ran.")


class JobView(BaseModel):
    """A job as it stands. Times are seconds since 1970."""

    id: str
    status: JobStatus
    number: float
    priority: int
    created: float
    started: float | None
    finished: float | None
    attempts: int
    worker_deaths: int
    outputs: list[OutputFile]
    receipts: list[dict[str, Any]] = Field(description="What every LoRA did.")
    warnings: list[str]
    timings: dict[str, float] = Field(description="Seconds by node id.")
    error: dict[str, Any] | None
    node_errors: dict[str, Any] | None = Field(None, description="Outputs that were left out, and why.")
    partial: Partial | None = Field(None, description="How far it came where nodes failed alone.")


class JobPage(BaseModel):
    jobs: list[JobView]
    total: int


class QueueView(BaseModel):
    pending: int
    running: int
    paused: bool
    worker: dict[str, Any]


class Move(BaseModel):
    """Another place for a waiting job."""

    model_config = ConfigDict(extra="forbid")
    number: float | None = Field(None, gt=-1e15, lt=1e15, description="Its place; lower ones run first.")
    priority: int | None = Field(None, ge=-1000, le=1000)


class Cancelled(BaseModel):
    cancelled: bool = Field(description="False when the job had finished.")


def view_of(job: Job, node_errors: dict[str, Any] | None = None) -> JobView:
    result = cast("dict[str, Any]", job.result or {})
    return JobView(
        id=job.id,
        status=cast("JobStatus", str(job.status)),
        number=job.number,
        priority=job.priority,
        created=job.created,
        started=job.started,
        finished=job.finished,
        attempts=job.claims,
        worker_deaths=job.deaths,
        outputs=outputs_of(result.get("outputs", {})),
        receipts=result.get("receipts", []),
        warnings=result.get("warnings", []),
        timings=result.get("timings", {}),
        error=cast("dict[str, Any] | None", job.error),
        node_errors=node_errors or None,
        partial=result.get("partial"),
    )


def outputs_of(outputs: dict[str, Any]) -> list[OutputFile]:
    """The files among a job's outputs, in the order of its nodes."""
    found: list[OutputFile] = []
    for node, shown in outputs.items():
        for entries in cast("dict[str, Any]", shown).values():
            for entry in cast("list[Any]", entries if isinstance(entries, list) else []):
                if isinstance(entry, dict) and "filename" in entry:
                    said = cast("dict[str, Any]", entry)
                    file: dict[str, Any] = {"subfolder": "", "type": "output", **said}
                    names = {name: str(file[name]) for name in ("filename", "subfolder", "type")}
                    found.append(OutputFile(node=node, url=f"/view?{urlencode(names)}", **names))
    return found


def create_api(state: ServerState) -> FastAPI:
    """The application behind /v1."""
    api = FastAPI(
        title="Loraloom",
        version=state.settings.version or "0",
        docs_url=None,
        redoc_url=None,
        default_response_class=Answer,
        responses=_REFUSALS,
    )
    api.add_exception_handler(LoraloomError, failures.handler("detail"))
    api.add_exception_handler(ClientDisconnect, failures.to_nobody)
    api.add_exception_handler(RequestValidationError, _not_valid)
    api.add_exception_handler(405, _other_methods)
    _add_jobs(api, state)
    _add_queue(api, state.dispatcher)
    from loraloom.server.page_routes import add_page_routes  # it needs the models above

    add_page_routes(api, state)
    return api


def _add_jobs(api: FastAPI, state: ServerState) -> None:
    dispatcher = state.dispatcher

    @api.post("/jobs", status_code=201, responses={400: _REFUSED_WORKFLOW, 409: {}, 429: {}},
              openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
                  "schema": Submission.model_json_schema()}}}})  # fmt: skip
    async def submit(request: Request) -> JobView:
        """Queue a job. It is safely stored when the answer arrives."""
        body = await read_object(request, state.settings.max_json)
        wanted = _validated(body)
        asked: dict[str, Any] = {
            "workflow": wanted.workflow,
            "prompt_id": wanted.id,
            "partial_execution_targets": wanted.targets,
            "webhook": wanted.webhook,
            "node_failure_policy": wanted.node_failure_policy,
            "extra_data": {"preview_method": "auto"} if wanted.previews else {},
        }
        try:
            accepted = await prompts.accept(asked, state)
            job_id = prompts.job_id_of(asked)
        except prompts.BadPrompt as error:
            raise HTTPException(400, error.body) from error
        job = await dispatcher.submit(
            accepted.request, job_id=job_id, front=wanted.front, priority=wanted.priority
        )
        return view_of(job, cast("dict[str, Any]", accepted.node_errors))

    @api.get("/jobs")
    async def jobs(
        status: Annotated[list[JobStatus] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> JobPage:
        """Jobs, the latest first."""
        statuses = [Status(s) for s in status] if status else [*Status]

        def page(store: Store) -> JobPage:
            found = [view_of(job) for job in store.jobs(statuses, limit, offset)]
            return JobPage(jobs=found, total=store.count(*statuses))

        return await dispatcher.read(page)

    @api.get("/jobs/{job_id}", responses={404: {}})
    async def job(job_id: str) -> JobView:
        """A job as it stands."""
        return await dispatcher.read(lambda s: view_of(s.get(job_id)))

    @api.delete("/jobs/{job_id}", status_code=204, responses={404: {}, 409: {}})
    async def forget(job_id: str) -> None:
        """Forget a finished job. Its pictures stay."""
        await dispatcher.call(lambda s: s.get(job_id))
        if not await dispatcher.call(lambda s: s.delete([job_id])):
            raise HTTPException(409, "the job has not finished; cancel it first")

    @api.patch("/jobs/{job_id}", responses={404: {}, 409: {}})
    async def move(job_id: str, to: Move) -> JobView:
        """Give a waiting job another place or priority."""
        known = await dispatcher.call(lambda s: s.get(job_id))
        number = known.number if to.number is None else to.number
        priority = known.priority if to.priority is None else to.priority
        return view_of(await dispatcher.move(job_id, number, priority))

    @api.post("/jobs/{job_id}/cancel", responses={404: {}})
    async def cancel(job_id: str) -> Cancelled:
        """Cancel a job that waits or runs; one that runs ends when the step that it computes is done."""
        return Cancelled(cancelled=await dispatcher.cancel(job_id))

    @api.post("/jobs/{job_id}/retry", responses={404: {}, 409: {}})
    async def retry(job_id: str) -> JobView:
        """Run a job again that failed, was cancelled or put aside."""
        return view_of(await dispatcher.retry(job_id))

    @api.get("/jobs/{job_id}/events", responses={404: {}, 200: {"content": {"text/event-stream": {}}}})
    async def events(request: Request, job_id: str) -> StreamingResponse:
        """The job's events as they happen, until it has ended.

        Events that last have an id, their sequence number; a reader that comes back with `Last-Event-ID`
        (or `?after=`) gets those that it has missed.
        """
        await dispatcher.read(lambda s: s.get(job_id))
        last = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 16 else 0
        return _streamed(follow(dispatcher, job_id, after))

    @api.get("/events", responses={200: {"content": {"text/event-stream": {}}}})
    async def all_events(
        request: Request,
        after: Annotated[str, Query(max_length=100, description="The id of the last event seen.")] = "",
        previews: Annotated[bool, Query(description="Send pictures of unfinished work.")] = False,
    ) -> StreamingResponse:
        """All that happens, of all jobs, without end, as server-sent events: one stream is enough for a page.

        `queue` {pending, running, paused, worker} comes first and after every change; `job` {id, status,
        number, priority, created, started, finished} when a job was queued, moved, begun or cancelled;
        `started`, `run_started`, `cached`, `node_started`, `node_finished`, `note`, `warning`, `blocked`,
        `node_failed`, and at the end `completed`, `failed`, `cancelled`, `requeued` or `quarantined`, each
        with {job, status, at} and its own fields; `progress` {job, node, display, value, max, preview}, of
        which only the latest is sent; `training` {name, status} while one runs. Events that last have an
        id. A reader that comes back with `Last-Event-ID` (or `?after=`) gets those that it has missed;
        `reset` says that they are not known any more, so that lists have to be read again.
        """
        last = request.headers.get("last-event-id", after)[:100]
        return _streamed(stream(state.events, dispatcher, last, previews=previews))


def _add_queue(api: FastAPI, dispatcher: Dispatcher) -> None:
    async def queue_view() -> QueueView:
        return QueueView(**await queue_state(dispatcher))

    @api.get("/queue")
    async def queue() -> QueueView:
        """How many jobs wait and run, and how the worker is."""
        return await queue_view()

    @api.post("/queue/pause")
    async def pause() -> QueueView:
        """Start no further jobs; the running one goes on."""
        await dispatcher.pause(True)
        return await queue_view()

    @api.post("/queue/resume")
    async def resume() -> QueueView:
        """Start jobs again."""
        await dispatcher.pause(False)
        return await queue_view()


async def _other_methods(request: Request, _error: Exception) -> Answer:
    """Every method that the path has, as the schema lists them: each is a route of its own."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    routes = [r for r in request.app.routes if isinstance(r, APIRoute) and r.path_regex.match(path)]
    routes = [r for r in routes if r.path == path] or routes
    allowed = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
    return Answer({"detail": "Method Not Allowed"}, 405, {"Allow": allowed})


async def _not_valid(_request: Request, error: Exception) -> Answer:
    """What does not fit the schema, without repeating it: it may be anything, NaN included."""
    found = error.errors() if isinstance(error, RequestValidationError) else ()
    return Answer({"detail": [{k: e[k] for k in ("type", "loc", "msg") if k in e} for e in found]}, 422)


def _streamed(events: AsyncGenerator[str, None]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")


def _validated(body: dict[str, Any]) -> Submission:
    from pydantic import ValidationError

    try:
        return Submission.model_validate(body)
    except ValidationError as error:
        raise HTTPException(400, error.errors(include_url=False, include_input=False)) from error
