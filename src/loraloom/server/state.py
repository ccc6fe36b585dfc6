"""What the routes share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import HTTPConnection

from loraloom.folders import ModelFolders
from loraloom.jobs.dispatcher import Dispatcher, Notice
from loraloom.jobs.job import Status
from loraloom.server import wire
from loraloom.server.hub import Hub
from loraloom.server.settings import ServerSettings
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import NodeSchema
from loraloom.workflow.validate import OwnChecks


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


@dataclass(slots=True)
class ServerState:
    """schemas: the classes that the worker can run, by name."""

    settings: ServerSettings
    dispatcher: Dispatcher
    hub: Hub
    files: Files
    schemas: Mapping[str, NodeSchema]
    log: Log = field(default_factory=Log)
    own: OwnChecks | None = None

    async def remaining(self) -> int:
        """How many jobs wait or run."""
        return await self.dispatcher.call(lambda s: s.count(Status.PENDING, Status.RUNNING))

    def tell(self, notice: Notice) -> None:
        """Pass a notice on to the WebSocket clients it concerns."""
        job = notice.job
        if job is None or job.request.client_id is None:
            return
        sid = job.request.client_id
        live = self.dispatcher.live
        states = live.states if live is not None and live.job.id == job.id else {}
        for kind, data in wire.messages_for(notice, states, int(time.time() * 1000)):
            self.hub.send(kind, data, sid)
        client = self.hub.find(sid)
        if notice.preview and client is not None:
            metadata = bool(client.flags.get("supports_preview_metadata"))
            node, display = str(notice.payload["node"]), str(notice.payload["display"])
            client.put(wire.preview_frame(notice.preview, node, display, job.id, metadata))


def state_of(connection: HTTPConnection) -> ServerState:
    return cast("ServerState", connection.app.state.server)
