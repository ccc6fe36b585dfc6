"""What runs on a node for each worker: the worker process of a single machine, relayed.

An actor, of which Ray is told by the driver; it knows nothing of Ray itself. What the worker says is kept
until the head has it, so that a connection that breaks for a moment loses nothing. So are files that a run
made, which the head fetches in pieces.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from loraloom import __version__
from loraloom.cluster.ray_node import NODE_VARIABLE
from loraloom.cluster.scratch import Scratch
from loraloom.cluster.shared_files import Cache, NotTheSame, piece_of
from loraloom.confined import parts_of, resolved
from loraloom.errors import LoraloomError
from loraloom.folders import model_folders
from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.messages import describe
from loraloom.jobs.orders import RUN, Entry, jobs_of, order_of, rows_of
from loraloom.jobs.worker_process import WorkerProcess, WorkerSettings
from loraloom.workflow.graph import JSON

LEASE_SECONDS = 60.0
"""A worker whose head asks for nothing for so long ends: its job has long been given to another."""
POLL_SECONDS = 5.0
_TOGETHER = 64

Made: TypeAlias = "list[tuple[dict[str, JSON], int]]"
"""The files that a message names: (as ComfyUI names a result, bytes)."""
Preparing: TypeAlias = "dict[str, asyncio.Task[None]]"
"""Jobs whose files are still coming, and what fetches them."""
Said: TypeAlias = "tuple[int, dict[str, JSON], bytes, Made]"
"""Number, message, tail, files."""


class NodeWorker:
    """One worker of a node."""

    def __init__(self, factory: str, settings: Mapping[str, JSON], version: str, source: Any = None) -> None:
        """settings: those of the head's own workers, but for this node's folders. source: the head's
        `FileSource`. Raises ValueError when the head runs another version."""
        if version != __version__:
            raise ValueError(f"this node has Loraloom {__version__}, the head {version}; install the same")
        self._node = cast("dict[str, Any]", json.loads(os.environ.get(NODE_VARIABLE, "{}")))
        self._folder = Scratch(self._node.get("scratch"))
        self._scratch = self._folder.path
        folders = model_folders(_paths(self._node.get("models")), _paths(self._node.get("extra_model_paths")))
        root = Path(self._node.get("cache") or self._scratch / "models")
        root.mkdir(parents=True, exist_ok=True)
        self._training = root / "training"  # it outlasts the worker, and the node where the disk is shared
        self._models: list[JSON] = [str(folder) for folder in (root, *folders.roots)]
        self._cache = Cache(root, self._scratch / "input", folders)
        self._source = source
        self._how = WorkerSettings(factory, self._own(settings), sys.stderr.write)
        self._worker: WorkerProcess | None = None
        self._preparing: Preparing = {}
        self._beginning: asyncio.Task[None] | None = None
        self._fetching = asyncio.Lock()
        self._kept: deque[Said] = deque()
        self._leaving = self._scratch / "leaving"
        self._leaving.mkdir()
        self._count = 0
        self._news = asyncio.Event()
        self._asked = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the process."""
        self._worker = await WorkerProcess.start(self._how)
        self._tasks = [
            asyncio.create_task(self._relay(self._worker)),
            asyncio.create_task(self._watch(self._worker)),
        ]

    async def send(self, message: dict[str, JSON]) -> None:
        """Pass an order on; to run jobs, once the files that they name are here, which is not waited for."""
        if message["order"] in RUN:
            self._preparing = preparing = dict[str, asyncio.Task[None]]()
            for job in jobs_of(message):
                preparing[str(job["job"])] = asyncio.create_task(self._prepare(job, preparing))
            self._beginning = asyncio.create_task(self._begin(message, preparing, [*preparing.values()]))
        elif message["order"] == "cancel" and (task := self._preparing.pop(str(message["job"]), None)):
            task.cancel()
            self._keep(({"kind": "cancelled", "job": message["job"], "node": None, "executed": []}, b""))
        elif self._worker is not None:
            await self._worker.send(message)

    async def _begin(
        self, order: Mapping[str, JSON], preparing: Preparing, tasks: Sequence[asyncio.Task[None]]
    ) -> None:
        """Run those jobs whose files could be had, and that were not cancelled meanwhile."""
        await asyncio.wait(tasks)
        files = [f for job in jobs_of(order) if job["job"] in preparing for f in _files_of(job)]
        try:
            await asyncio.to_thread(self._cache.forget_others, files)
        except Exception as error:  # noqa: BLE001 - whatever it is, they would run with what is not theirs
            for name in [*preparing]:
                self._failed(name, preparing, error)
        left = [job for job in jobs_of(order) if job["job"] in preparing]
        preparing.clear()  # from here on a cancel is the process's affair
        if left and self._worker is not None:
            alone = [{k: v for k, v in job.items() if k != "files"} for job in left]
            await self._worker.send(order_of(alone, rows_of(order)))

    async def _prepare(self, job: Entry, preparing: Preparing) -> None:
        """Have a job's files here; a job that cannot have them fails alone."""
        try:
            async with self._fetching:  # they are mostly the same ones
                await self._cache.provide(_files_of(job), self._fetch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job cannot run here
            self._failed(str(job["job"]), preparing, error)

    def _failed(self, job: str, preparing: Preparing, error: Exception) -> None:
        if preparing.pop(job, None) is not None:
            self._keep(({"kind": "failed", "job": job, "error": describe(error)}, b""))

    async def _fetch(self, digest: str, offset: int) -> bytes:
        try:
            piece = await self._source.read.remote(digest, offset)
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # Ray's own text is a traceback of the head
            raise NotTheSame(f"the head cannot give a file of this job ({cause})") from error
        self._keep(({"kind": "fetching"}, b""))  # so that the head sees that it goes on
        return piece

    async def ask(self, message: dict[str, JSON], seconds: float) -> JSON:
        """The process's answer to a question. Raises TimeoutError."""
        if self._worker is None:
            raise TimeoutError("there is no worker")
        return await self._worker.ask(message, seconds)

    async def receive(self, seen: int) -> tuple[float, list[Said]]:
        """How long the process has been silent, and what it said after the message `seen`, which is waited
        for a little."""
        self._asked = time.monotonic()
        while self._kept and self._kept[0][0] <= seen:
            number, _, _, files = self._kept.popleft()
            for which in range(len(files)):
                self._made((number, which)).unlink(missing_ok=True)
        if not self._kept:
            self._news.clear()
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass
        silent = 0.0 if self._worker is None else time.monotonic() - self._worker.last_sign
        return silent, [self._kept[i] for i in range(min(_TOGETHER, len(self._kept)))]

    async def read(self, file: tuple[int, int], offset: int) -> bytes:
        """A piece of a file that a message names. file: (number of the message, which of its files). Raises
        OSError."""
        self._asked = time.monotonic()
        return await asyncio.to_thread(piece_of, self._made(file), offset)

    async def end(self) -> None:
        """End the process and delete what it left."""
        if self._worker is not None:
            await self._worker.kill()
        self._folder.end()

    # ---- The process ----

    async def _relay(self, worker: WorkerProcess) -> None:
        try:
            while (frame := await worker.receive()) is not None:
                self._keep(frame)
        except (BrokenFrame, LoraloomError, OSError) as error:
            await worker.kill()
            self._keep(({"kind": "ended", "reason": f"it sent something that cannot be read ({error})"}, b""))
            return
        self._keep(({"kind": "ended", "reason": await worker.gone()}, b""))
        self._folder.end()

    async def _watch(self, worker: WorkerProcess) -> None:
        while time.monotonic() - self._asked < LEASE_SECONDS:
            await asyncio.sleep(1.0)
        await self.end()
        os._exit(1)

    def _keep(self, frame: Frame) -> None:
        """Raises LoraloomError or OSError for files that cannot be meant, or moved."""
        number = self._count + 1
        self._kept.append((number, *frame, self._files(frame[0], number)))
        self._count = number
        self._news.set()

    def _made(self, file: tuple[int, int]) -> Path:
        return self._leaving / "-".join(map(str, file))

    def _own(self, settings: Mapping[str, JSON]) -> dict[str, JSON]:
        folders = {f"{kind}_dir": str(self._scratch / kind) for kind in ("output", "temp", "input")}
        for folder in folders.values():
            Path(folder).mkdir()
        folders["training_dir"] = str(self._training)
        chosen = ("custom_nodes", "extra_model_paths", "device")
        own = {name: self._node[name] for name in chosen if name in self._node} | {"models": self._models}
        return {**settings, **folders, **own}

    def _files(self, message: Mapping[str, JSON], number: int) -> Made:
        """The files that the end of a node names, moved to where they are fetched from."""
        ui = message.get("ui") if message.get("kind") == "node_finished" else None
        made: Made = []
        for entry in named_files(ui):
            root = self._scratch / str(entry["type"])
            path = resolved(root, parts_of(f"{entry.get('subfolder', '')}/{entry['filename']}".lstrip("/")))
            if path.is_file():
                path.replace(self._made((number, len(made))))
                made.append((entry, self._made((number, len(made))).stat().st_size))
        return made


def _files_of(job: Entry) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", job.get("files") or [])


def _paths(names: list[str] | None) -> list[Path] | None:
    return None if names is None else [Path(name) for name in names]


def named_files(ui: JSON) -> list[dict[str, JSON]]:
    """The results in what a node gives to show that are files of the output or temporary folder."""
    lists = [v for v in ui.values() if isinstance(v, list)] if isinstance(ui, dict) else []
    entries = [entry for found in lists for entry in found if isinstance(entry, dict)]
    return [e for e in entries if isinstance(e.get("filename"), str) and e.get("type") in ("output", "temp")]
