"""The head of a cluster: beside the server's queue, it keeps Ray, the driver, and a lane for every worker."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from loraloom.cluster.incoming import Incoming
from loraloom.cluster.ray_node import (
    DEFAULT_PORT,
    NodeLimits,
    RayNode,
    head_arguments,
    in_words,
    ray_environment,
)
from loraloom.cluster.remote_worker import RemoteWorker
from loraloom.cluster.shared_files import Offer
from loraloom.errors import LoraloomError
from loraloom.jobs import frames
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.frames import BrokenFrame, Frame
from loraloom.jobs.job import Status
from loraloom.jobs.notices import Limits
from loraloom.jobs.publishing import Places, discard
from loraloom.workflow.graph import JSON

AUTO = "auto"
_LONGEST_PAUSE = 15.0
_SILENCE_SECONDS = 60.0
_TICK_SECONDS = 5.0
_FIRST_TICKS, _TICKS = 24, 12
"""After how many a driver is ended that says nothing, before and after it has reached Ray. They are counted,
as time also passes while this process stands still."""
_SCALE_SECONDS = 5.0
REST_SECONDS = 60.0
"""How long there is nothing to do before Ray's autoscaler may take machines away."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What a head is told.

    address: "auto" starts Ray here; else the HOST:PORT of a Ray cluster that runs. own_address: this
    machine's within the cluster, None: as Ray finds. token: the secret that Ray's machines share. factory,
    worker: the runner of the workers' processes and its settings. most: how many workers Ray's autoscaler may
    bring, 0 for none.
    places: for the files that jobs make; both on one disk. offer: files that nodes may fetch.
    """

    address: str
    factory: str
    worker: Mapping[str, JSON]
    places: Places
    temp: Path
    own_address: str | None = None
    port: int = DEFAULT_PORT
    token: str | None = None
    most: int = 0
    limits: NodeLimits = NodeLimits()
    offer: Offer | None = None
    log: Callable[[str], object] = sys.stderr.write


@dataclass(slots=True)
class Head:
    """nodes: those that Ray knows and that run workers, by id."""

    settings: ClusterSettings
    dispatcher: Dispatcher
    job_limits: Limits = Limits()
    nodes: dict[str, Mapping[str, Any]] = field(default_factory=lambda: dict[str, Mapping[str, Any]]())
    trouble: str | None = "Ray has not started yet"
    _workers: dict[str, RemoteWorker] = field(default_factory=lambda: dict[str, RemoteWorker]())
    _node: RayNode | None = None
    _process: asyncio.subprocess.Process | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=lambda: list[asyncio.Task[None]]())
    _incoming: Incoming = field(init=False)
    _wanted: int | None = None
    _busy: float = field(default_factory=time.monotonic)
    _resting: bool = False

    def __post_init__(self) -> None:
        self._incoming = Incoming(self.settings.places.output, self.settings.temp)
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def _staging(self) -> Path:
        return self.settings.places.staging or self.settings.places.output

    def start(self) -> None:
        """Begin; machines join and leave from now on."""
        if self.settings.address == AUTO:
            settings = self.settings
            arguments = head_arguments(settings.own_address, settings.port, settings.limits)
            environment = ray_environment(settings.token)
            self._node = RayNode(arguments, environment, settings.log, own_port=settings.port)
            self._tasks.append(asyncio.create_task(self._node.keep()))
        self._tasks.append(asyncio.create_task(self._keep_driver()))
        if self.settings.most:
            self._tasks.append(asyncio.create_task(self._keep_scaling()))

    async def stop(self) -> None:
        """End the driver, its workers, and Ray where it was started here."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- The driver ----

    async def _keep_driver(self) -> None:
        failures = 0
        while True:
            try:
                failures = 0 if await self._drive() else failures + 1
            except (OSError, BrokenFrame, ValueError, KeyError, TypeError) as error:
                self._note(f"the cluster's driver failed ({type(error).__name__}: {error})")
                failures += 1
            finally:
                await self._end_driver()
            await self._without_nodes()
            await asyncio.sleep(min(_LONGEST_PAUSE, 0.5 * 2.0**failures))

    async def _drive(self) -> bool:
        """Run a driver to its end; whether it ever had a cluster."""
        settings = self.settings
        here = f"{settings.own_address or '127.0.0.1'}:{settings.port}"
        address = here if settings.address == AUTO else settings.address
        own = settings.own_address or ""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loraloom.cluster.driver", address, str(self._staging), own),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ray_environment(settings.token),
        )
        assert process.stdout is not None and process.stderr is not None
        latest: list[str] = []
        logging = asyncio.create_task(self._forward(process.stderr, latest))
        had_cluster = False
        try:
            while (
                frame := await _receive(process.stdout, _TICKS if had_cluster else _FIRST_TICKS)
            ) is not None:
                had_cluster = True
                await self._heard(*frame)
        finally:
            logging.cancel()
        what = "lost Ray" if had_cluster else f"cannot reach Ray at {address}"
        ours = None if self._node is None else self._node.trouble
        why = in_words(latest, address) if ours is None else f"Ray does not run here: {ours}"
        self._note(f"the cluster's driver {what} ({why})")
        return had_cluster

    async def _forward(self, source: asyncio.StreamReader, latest: list[str]) -> None:
        while line := (await source.readline()).decode("utf-8", "replace"):
            del latest[:-20]
            latest.append(line.strip())

    async def _end_driver(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _note(self, text: str) -> None:
        self.trouble = text
        self.settings.log(text + "\n")

    # ---- What it says ----

    async def _heard(self, message: Mapping[str, Any], tail: bytes) -> None:
        if message["kind"] == "ready":
            self.trouble = self._wanted = None
        elif message["kind"] == "beat":
            return
        elif message["kind"] == "nodes":
            await self._see({str(node["id"]): node for node in message["nodes"]})
        elif (worker := self._workers.get(str(message["worker"]))) is not None:
            worker.heard(message, tail)
            if not worker.alive:
                del self._workers[worker.name]
        elif message["kind"] == "said":  # of a worker that was ended meanwhile
            discard([(staged, "") for _, staged in message["files"]])

    async def _see(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        former, self.nodes = self.nodes, dict(nodes)
        await self._forget([node for node in former if node not in nodes], former)
        for node_id, node in nodes.items():
            if node_id in former:
                continue
            self.settings.log(
                f"node {node['host']} ({node['address']}) joined with {node['workers']} workers\n"
            )
            if not self._resting:
                self._open_lanes(node)

    def _open_lanes(self, node: Mapping[str, Any]) -> None:
        limits = replace(self.job_limits, silence=max(self.job_limits.silence, _SILENCE_SECONDS))
        for name in lanes_of(node):
            if name not in self.dispatcher.lanes:
                self.dispatcher.add(name, partial(self._start_worker, node), limits)

    async def _forget(self, gone: list[str], known: Mapping[str, Mapping[str, Any]]) -> None:
        names = [name for node_id in gone for name in lanes_of(known[node_id])]
        for name in names:
            lane = self.dispatcher.lanes.get(name)
            worker = None if lane is None else lane.keeper.worker
            if isinstance(worker, RemoteWorker):
                worker.ended("its machine is not heard of any more", lost=True)
        await asyncio.gather(*(self.dispatcher.remove(n) for n in names if n in self.dispatcher.lanes))

    async def _without_nodes(self) -> None:
        """There is no driver: nothing is known of any worker."""
        for worker in self._workers.values():
            worker.ended("the connection to the cluster was lost", lost=True)
        self._workers.clear()
        former, self.nodes = self.nodes, {}
        await self._forget([*former], former)

    # ---- Ray's autoscaler ----

    async def _keep_scaling(self) -> None:
        while True:
            with contextlib.suppress(LoraloomError):  # the queue's file is in use
                jobs = await self.dispatcher.read(lambda s: s.count(Status.PENDING, Status.RUNNING))
                await self.scale(jobs, time.monotonic())
            await asyncio.sleep(_SCALE_SECONDS)

    async def scale(self, jobs: int, now: float) -> None:
        """Want as many workers as there are jobs, and let all of them go when there was none for a while: a
        machine whose worker lives is never taken away."""
        wanted = min(self.settings.most, jobs)
        if wanted != self._wanted:
            self._wanted = wanted
            self._send({"order": "want", "workers": wanted})
        if jobs:
            self._busy, self._resting = now, False
            for node in self.nodes.values():
                self._open_lanes(node)
        elif not self._resting and now - self._busy > REST_SECONDS:
            self._resting = True
            names = [name for node in self.nodes.values() for name in lanes_of(node)]
            await asyncio.gather(*(self.dispatcher.remove(n) for n in names if n in self.dispatcher.lanes))

    async def _start_worker(self, node: Mapping[str, Any]) -> RemoteWorker:
        worker = RemoteWorker(self._send, self._incoming, self.settings.offer)
        self._workers[worker.name] = worker
        self._send(
            {
                "order": "start",
                "worker": worker.name,
                "node": node["id"],
                "gpus": 1 if node["gpus"] >= node["workers"] else 0,
                "factory": self.settings.factory,
                "settings": dict(self.settings.worker),
            }
        )
        return worker

    def _send(self, order: Mapping[str, JSON]) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(frames.encode(order))


async def _receive(source: asyncio.StreamReader, ticks: int) -> Frame | None:
    """A frame; None at the end. Raises TimeoutError."""
    receiving = asyncio.ensure_future(frames.receive(source))
    try:
        for _ in range(ticks):
            if (await asyncio.wait([receiving], timeout=_TICK_SECONDS))[0]:
                return receiving.result()
    finally:
        receiving.cancel()
    raise TimeoutError(f"it said nothing for {ticks * _TICK_SECONDS:g} s")


def lanes_of(node: Mapping[str, Any]) -> list[str]:
    """The names of a node's workers."""
    short = f"{node['host']}-{str(node['id'])[-6:]}"
    return [f"{short}/{number}" for number in range(int(cast("float", node["workers"])))]
