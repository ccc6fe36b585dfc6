"""A worker on another machine without Ray: a real process and what runs on a node, whose files and messages
are brought to the queue as the driver brings them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loraloom import __version__
from loraloom.cluster.incoming import Incoming
from loraloom.cluster.node_worker import NodeWorker
from loraloom.cluster.ray_node import NODE_VARIABLE
from loraloom.cluster.remote_worker import RemoteWorker
from loraloom.cluster.shared_files import FileSource, Offer

_count = itertools.count()


class Source(FileSource):
    """The head's files as an actor would give them. go: whether it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.asked = asyncio.Event(), asyncio.Event()

    @property
    def read(self) -> Source:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self

    async def remote(self, digest: str, offset: int) -> bytes:
        self.asked.set()
        await self.go.wait()
        return FileSource.read(self, digest, offset)


class Relayed:
    """Starts workers of one node, each again when it has ended. orders: those that reached the node."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, offer: Offer | None = None) -> None:
        self._staging, self._offer = folder / "staging", offer
        self._incoming = Incoming(folder / "output", folder / "temp")
        self.source, self.orders = Source(), list[Mapping[str, Any]]()
        self.source.go.set()
        self.workers: list[RemoteWorker] = []
        self._nodes: list[NodeWorker] = []
        self._tasks: list[asyncio.Task[None]] = []
        for name in ("staging", "scratch"):
            (folder / name).mkdir(exist_ok=True)
        node = {"cache": str(folder / "cache"), "scratch": str(folder / "scratch"), "models": []}
        monkeypatch.setenv(NODE_VARIABLE, json.dumps(node))

    async def start(self) -> RemoteWorker:
        node = NodeWorker("tests.cluster.picture_runner:make", {}, __version__, self.source)
        self._nodes.append(node)
        await node.start()
        sent: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        worker = RemoteWorker(sent.put_nowait, self._incoming, self._offer)
        self.workers.append(worker)
        self._tasks += [
            asyncio.create_task(self._orders(node, sent)), asyncio.create_task(self._said(node, worker)),
        ]  # fmt: skip
        return worker

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(node.end() for node in self._nodes))

    async def _orders(self, node: NodeWorker, sent: asyncio.Queue[Mapping[str, Any]]) -> None:
        while (order := await sent.get())["order"] != "kill":
            for digest, path in order.get("paths", {}).items():
                self.source.offer(digest, path)
            self.orders.append(order["message"])
            await node.send(json.loads(json.dumps(order["message"])))
        await node.end()

    async def _said(self, node: NodeWorker, worker: RemoteWorker) -> None:
        seen = 0
        while worker.alive:
            _, said = await node.receive(seen)
            for number, message, tail, files in said:
                seen = number
                if message["kind"] == "ended":
                    worker.ended(str(message["reason"]), lost=False)
                    return
                brought = [
                    [entry, await self._brought(node, (number, i))] for i, (entry, _) in enumerate(files)
                ]
                worker.heard({"kind": "said", "message": message, "files": brought}, tail)

    async def _brought(self, node: NodeWorker, file: tuple[int, int]) -> str:
        path = self._staging / f"{next(_count)}.part"
        path.write_bytes(await node.read(file, 0))
        return str(path)

    def lose(self, worker: RemoteWorker) -> None:
        """Its machine is not heard of any more."""
        worker.ended("its machine is not heard of any more", lost=True)
