"""The server, put together."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from loraloom.atomic_file import make_folder
from loraloom.engine.likeness import likeness as alike
from loraloom.errors import LoraloomError
from loraloom.folders import ModelFolders
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Request as JobRequest
from loraloom.jobs.notices import Limits, Notice
from loraloom.jobs.placement import Needs
from loraloom.jobs.publishing import Places
from loraloom.jobs.store import MAX_FINISHED, MAX_PENDING
from loraloom.jobs.worker_process import WorkerSettings
from loraloom.jobs.writer import StoreThread
from loraloom.server import (
    editor_routes,
    failures,
    file_routes,
    library_routes,
    page,
    queue_routes,
    user_routes,
    wire,
)
from loraloom.server.answers import Answer
from loraloom.server.hub import Hub
from loraloom.server.lazy import LazyApp
from loraloom.server.patience import Patience
from loraloom.server.release import keep_for_good
from loraloom.server.security import Security
from loraloom.server.settings import ServerSettings
from loraloom.server.state import Beside, Files, Learn, Log, ServerState, state_of
from loraloom.server.templates import Templates
from loraloom.server.webhooks import Webhooks, secret_of
from loraloom.visible import visible_log
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.validate import OwnChecks


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a server is made of.

    worker: the factory of the workers' runners, "module:function", and `worker_settings` for it; `devices`
        for several workers here, one on each; () for none here.
    beside: what works beside the queue, such as a cluster; it is started and ended with it.
    needs: what a job loads.
    own: which inputs the classes of node packs check themselves.
    learn: reads what the worker declares, when node packs bring classes along.
    awaits_classes: nothing is known of those yet.
    text_types: gives the types of text encoders (the loaders' `type`) that a family here has.
    start_paused: start no jobs until told to.
    previews: how pictures of unfinished work are made for jobs that do not say it themselves.
    rows: jobs that are variants of one workflow and run together, at most.
    """

    settings: ServerSettings
    folders: ModelFolders
    schemas: Mapping[str, NodeSchema]
    worker: str
    worker_settings: Mapping[str, JSON]
    limits: Limits = Limits()
    start_paused: bool = False
    previews: str = "none"
    rows: int = 1
    max_pending: int = MAX_PENDING
    max_finished: int = MAX_FINISHED
    own: OwnChecks | None = None
    learn: Learn | None = None
    awaits_classes: bool = False
    text_types: Callable[[], Collection[str]] = frozenset
    devices: Sequence[str] | None = None
    beside: Callable[[Dispatcher], Beside] | None = None
    needs: Callable[[JobRequest], Needs] | None = None
    places: Places | None = None


def application(setup: Setup, state: ServerState) -> ASGIApp:
    """The ASGI application; its lifespan starts the queue and ends the worker."""
    common = [
        *queue_routes.routes(),
        *file_routes.routes(),
        *library_routes.routes(),
        *user_routes.routes(),
        *editor_routes.routes(),
        Route("/extensions", page.extensions, methods=["GET"]),
    ]
    not_found: list[BaseRoute] = [Route("/{rest:path}", library_routes.missing)]
    routes: list[BaseRoute] = [
        WebSocketRoute("/ws", _websocket),
        WebSocketRoute("/api/ws", _websocket),
        Mount("/v1", LazyApp("loraloom.server.api", "create_api")),
        Mount("/api", routes=[*common, *not_found]),
        *common,
        *editor_routes.extension_routes(),
        *Templates(setup.text_types).routes(),
        *page.routes(),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        app.state.server = state
        await state.dispatcher.start()
        if state.beside is not None:
            state.beside.start()
        stop = start_telling(state)
        calling = asyncio.create_task(state.webhooks.work())
        keep_for_good()
        try:
            yield
        finally:
            stop()
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            await asyncio.gather(state.trainings.close(), state.library.stop(), state.dispatcher.stop())
            if state.beside is not None:
                await state.beside.stop()

    handlers = {
        HTTPException: _http_error,
        LoraloomError: failures.handler("error"),
        ClientDisconnect: failures.to_nobody,
    }
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)  # pyright: ignore[reportArgumentType]
    return Patience(Security(app, setup.settings))


def open_state(setup: Setup) -> tuple[ServerState, StoreThread]:
    """The queue's file and its dispatcher, not yet at work. Raises InputError for what cannot be used."""
    settings = setup.settings
    for folder in (settings.output_dir, settings.input_dir, settings.temp_dir, settings.user_dir):
        make_folder(folder, 0o700 if folder == settings.temp_dir else 0o777)
    file_routes.sweep(settings.temp_dir, older_than_seconds=24 * 3600)
    log = Log()

    def write(text: str) -> None:
        sys.stderr.write(visible_log(text))
        log.write(text)

    store = StoreThread(
        queue_file(settings.user_dir), max_pending=setup.max_pending, max_finished=setup.max_finished
    )
    own = setup.worker_settings
    each = [own] if setup.devices is None else [{**own, "device": device} for device in setup.devices]
    state: ServerState | None = None

    def likeness(request: JobRequest) -> str | None:
        schemas = setup.schemas if state is None else state.schemas
        with suppress(LoraloomError):
            return alike(parse_api(dict(request.prompt)), schemas, request.targets)
        return None

    dispatcher = Dispatcher(
        store,
        [WorkerSettings(setup.worker, settings, write) for settings in each],
        limits=setup.limits,
        paused=setup.start_paused,
        previews=setup.previews,
        needs=setup.needs,
        places=setup.places,
        likeness=likeness,
        rows=setup.rows,
        log=write,
    )
    files = Files(setup.folders)
    hooks = Webhooks(dispatcher, secret_of(settings.user_dir), settings.allow_webhooks, write)
    state = ServerState(settings, dispatcher, Hub(), files, setup.schemas, hooks, log, setup.own)
    state.beside = None if setup.beside is None else setup.beside(dispatcher)
    state.reads_classes, state.awaits_classes = setup.learn, setup.awaits_classes
    return state, store


def queue_file(user_dir: Path) -> Path:
    return user_dir / "queue.db"


def start_telling(state: ServerState) -> Callable[[], None]:
    """Pass what happens on to clients, and the length of the queue whenever it changes."""
    changed = asyncio.Event()

    def hear(notice: Notice) -> None:
        if notice.kind == "worker":
            state.learn(state.dispatcher.declared)
        state.events.hear(notice)
        state.tell(notice)
        if notice.kind == "queue" or (notice.job is not None and notice.job.status.final):
            changed.set()

    async def tell_status() -> None:
        while True:
            await changed.wait()
            changed.clear()
            if state.hub.clients:
                with suppress(LoraloomError):  # the queue's file is in use; the next change tells it
                    state.hub.send("status", wire.status(await state.remaining()))
            await asyncio.sleep(0.05)

    stop_listening = state.dispatcher.listen(hear)
    task = asyncio.create_task(tell_status())

    def stop() -> None:
        stop_listening()
        task.cancel()

    return stop


async def _websocket(socket: WebSocket) -> None:
    state = state_of(socket)
    sid = socket.query_params.get("clientId")
    sid = sid if sid and len(sid) <= 200 else None
    await state.hub.serve(socket, sid, lambda: queue_routes.greeting(state, sid))


async def _http_error(_request: Request, error: HTTPException) -> Response:
    if error.status_code in (404, 405) and error.detail in ("Not Found", "Method Not Allowed"):
        return Response(status_code=error.status_code, headers=error.headers)
    return Answer({"error": error.detail}, error.status_code, error.headers)
