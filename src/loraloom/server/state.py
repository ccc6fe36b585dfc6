"""What the routes share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

from starlette.requests import HTTPConnection

from loraloom.folders import ModelFolders
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Status
from loraloom.jobs.notices import Notice
from loraloom.server import wire
from loraloom.server.events import EventLog
from loraloom.server.hub import Hub, encoded
from loraloom.server.library_process import LibraryProcess
from loraloom.server.listing import QueueListing
from loraloom.server.rates import Rates
from loraloom.server.settings import ServerSettings
from loraloom.server.trainings import Trainings
from loraloom.server.webhooks import Webhooks
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.report import Report
from loraloom.workflow.schema import FileLister, NodeSchema
from loraloom.workflow.validate import OwnChecks, validate

Learn: TypeAlias = "Callable[[JSON], tuple[Mapping[str, NodeSchema], OwnChecks]]"
"""Reads the node classes that the worker declares; which inputs they check themselves."""


class Beside(Protocol):
    """What works beside the queue and brings it workers."""

    def start(self) -> None: ...
    async def stop(self) -> None: ...
    @property
    def nodes(self) -> Mapping[str, Mapping[str, JSON]]: ...
    @property
    def trouble(self) -> str | None: ...


class Log:
    """The latest lines that the server and its worker have printed."""

    def __init__(self, size: int = 300) -> None:
        self.entries: deque[dict[str, JSON]] = deque(maxlen=size)

    def write(self, text: str) -> None:
        self.entries.append({"t": time.strftime("%Y-%m-%dT%H:%M:%S"), "m": text})


class Files:
    """The names in model folders, listed anew after a moment: one prompt asks for a folder many times."""

    def __init__(self, folders: ModelFolders, seconds: float = 1.0) -> None:
        self.folders, self._seconds = folders, seconds
        self._known: dict[str, tuple[float, list[str]]] = {}

    def list(self, kind: str) -> list[str]:
        now = time.monotonic()
        known = self._known.get(kind)
        if known is None or now - known[0] > self._seconds:
            known = (now, self.folders.list(kind))
            self._known[kind] = known
        return known[1]

    def anew(self) -> FileLister:
        """What lists each folder anew, once: for one answer about what there is now."""
        asked: set[str] = set()

        def names(kind: str) -> list[str]:
            if kind not in asked:
                asked.add(kind)
                self._known.pop(kind, None)
            return self.list(kind)

        return names

    def forget(self) -> None:
        """List anew: files were added."""
        self._known.clear()


@dataclass(slots=True)
class ServerState:
    """schemas: the classes that the worker can run, by name."""

    settings: ServerSettings
    dispatcher: Dispatcher
    hub: Hub
    files: Files
    schemas: Mapping[str, NodeSchema]
    webhooks: Webhooks
    log: Log = field(default_factory=Log)
    own: OwnChecks | None = None
    library: LibraryProcess = field(default_factory=LibraryProcess)
    reads_classes: Learn | None = None
    awaits_classes: bool = False
    events: EventLog = field(default_factory=EventLog)
    beside: Beside | None = None
    rates: Rates = field(default_factory=Rates)
    queue_listing: QueueListing = field(init=False)
    trainings: Trainings = field(init=False)
    _learned: JSON = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.queue_listing = QueueListing(self.dispatcher)
        self.trainings = Trainings(self.settings.user_dir / "trainings", self.events.tell)

    async def learn_anew(self) -> None:
        """Have node packs say what they declare now: their choices may be files."""
        await self.dispatcher.declare()
        self.learn(self.dispatcher.declared)

    def learn(self, declared: JSON) -> None:
        """Take over the classes that the worker brings along."""
        if self.reads_classes is not None and declared is not None and declared != self._learned:
            self._learned = declared
            try:
                self.schemas, self.own = self.reads_classes(declared)
            except (KeyError, TypeError, ValueError) as error:
                self.log.write(f"the worker's node classes cannot be read ({error!r})\n")
        self.awaits_classes = False

    def validate(self, graph: Graph, targets: tuple[str, ...] | None = None) -> Report:
        """What of a graph can run here. What is in no list is looked for in a new one: it may have been put
        there a moment ago."""
        report = validate(graph, self.schemas, self.files.list, targets, self.own)
        if any(problem.type == "value_not_in_list" for problem in report.problems):
            report = validate(graph, self.schemas, self.files.anew(), targets, self.own)
        return report

    async def all_classes(self) -> None:
        """Wait until the classes of node packs are known; not for ever, nor when the worker cannot start."""
        if self.awaits_classes:
            await self.dispatcher.settled()

    async def remaining(self) -> int:
        """How many jobs wait or run."""
        return await self.dispatcher.read(lambda s: s.count(Status.PENDING, Status.RUNNING))

    def tell(self, notice: Notice) -> None:
        """Pass a notice on to the WebSocket client it concerns; nothing is made when it is not there."""
        job = notice.job
        if notice.kind == "completed" and job is not None:
            self.rates.count(job.place or "")
        if job is None or job.request.client_id is None:
            return
        client = self.hub.find(job.request.client_id)
        ends = notice.kind != "queue" and job.status.final
        if ends:
            self.hub.ended.note(job.request.client_id, job.id, told=client is not None)
        if client is None:
            return
        live = self.dispatcher.running.get(job.id)
        if live is not None and notice.kind in wire.CHANGES_STATES:
            client.put_latest("progress_state", lambda: encoded(*wire.progress_state(job.id, live.states)))
        elif ends:
            client.settle("progress_state")
            client.settle("preview")
        for kind, data in wire.messages_for(notice, int(time.time() * 1000)):
            client.put(encoded(kind, data))
        if notice.preview:
            metadata = bool(client.flags.get("supports_preview_metadata"))
            node, display = str(notice.payload["node"]), str(notice.payload["display"])
            picture = notice.preview
            client.put_latest("preview", lambda: wire.preview_frame(picture, node, display, job.id, metadata))


def state_of(connection: HTTPConnection) -> ServerState:
    return cast("ServerState", connection.app.state.server)
