"""The process that talks to Ray for the server, through frames on its standard input and output.

It may end at any moment, as Ray ends programs that lose their cluster: the server goes on and starts another.
Orders: start, to, ask, kill (each for a worker), want. What it says: ready, nodes, and of a worker said,
alive, answer, ended; and every second that it is there (beat).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

# Ray is an extra: types are checked where it is not installed, too.
import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    ActorDiedError,
    ActorUnavailableError,
    RayError,
)
from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
    NodeAffinitySchedulingStrategy,
)

from loraloom import __version__
from loraloom.cluster.node_worker import POLL_SECONDS, NodeWorker, Said
from loraloom.cluster.ray_node import SLOT
from loraloom.cluster.shared_files import PIECE_BYTES, FileSource
from loraloom.jobs import frames
from loraloom.jobs.publishing import discard
from loraloom.jobs.worker import die_with_parent
from loraloom.workflow.graph import JSON

SILENCE_SECONDS = 30.0
"""A worker that does not answer for so long is given up."""
_NOT_BEGUN = "raised in its creation task"
_NODES_SECONDS = 1.0
_NODES_TIMEOUT = 30.0


class Driver:
    """One connection to a cluster."""

    def __init__(self, sink: IO[bytes], staging: Path) -> None:
        self._sink, self._staging = sink, staging
        self._sending = threading.Lock()
        self._source: Any = None
        self._offered: dict[str, str] = {}
        self._in_order: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._workers: dict[str, Any] = {}
        self._heard: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alive: frozenset[str] = frozenset()
        self._files = 0

    async def serve(self, orders: asyncio.Queue[dict[str, Any] | None]) -> None:
        """Do as the server says, until its end."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote(FileSource)
        self._source = remote.options(num_cpus=0, scheduling_strategy=here).remote()
        self._say({"kind": "ready"})
        watching = asyncio.create_task(self._watch_nodes())
        watching.add_done_callback(lambda _: orders.put_nowait(None))
        while (order := await orders.get()) is not None:
            task = asyncio.create_task(self._do(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        watching.cancel()

    # ---- Orders ----

    async def _do(self, order: Mapping[str, Any]) -> None:
        match order["order"]:
            case "start":
                await self._start(order)
            case "to":
                await self._pass_on(order)
            case "ask":
                await self._ask(order)
            case "kill":
                await self._kill(str(order["worker"]))
            case "want":
                await asyncio.to_thread(_want, int(order["workers"]))
            case _:
                pass

    async def _start(self, order: Mapping[str, Any]) -> None:
        name = str(order["worker"])
        where = NodeAffinitySchedulingStrategy(str(order["node"]), soft=False)
        remote: Any = ray.remote(NodeWorker)
        options = remote.options(
            num_cpus=0,
            num_gpus=order["gpus"],
            resources={SLOT: 1},
            scheduling_strategy=where,
            max_restarts=0,
            max_concurrency=16,
        )
        actor = options.remote(order["factory"], order["settings"], __version__, self._source)
        self._workers[name] = actor
        try:
            await actor.start.remote()
            await self._listen(name, actor)
        except _GivenUp as error:
            self._say({"kind": "ended", "worker": name, "reason": str(error), "lost": error.lost})
        except RayError as error:
            await self._ended(name, str(order["node"]), error)
        finally:
            self._workers.pop(name, None)
            self._in_order.pop(name, None)
            self._heard.pop(name, None)
            await asyncio.to_thread(_kill, actor)

    async def _pass_on(self, order: Mapping[str, Any]) -> None:
        name = str(order["worker"])
        actor = self._workers.get(name)
        if actor is None:
            return
        try:
            # One after the other: Ray does not promise that calls begin in the order in which they are made.
            async with self._in_order[name]:
                for digest, path in order.get("paths", {}).items():
                    if self._offered.get(digest) != path:
                        await self._source.offer.remote(digest, path)
                        self._offered[digest] = path
                await actor.send.remote(order["message"])
        except RayError:
            # Whether it got it is not known; `_listen` tells what became of it, and if it lives, it is ended.
            await asyncio.to_thread(_kill, actor)

    async def _ask(self, order: Mapping[str, Any]) -> None:
        actor = self._workers.get(str(order["worker"]))
        if actor is None:
            return
        try:
            answer = await actor.ask.remote(order["message"], order["seconds"])
        except (RayError, TimeoutError):
            return
        self._say({"kind": "answer", "worker": order["worker"], "to": order["to"], "answer": answer})

    async def _kill(self, name: str) -> None:
        actor = self._workers.get(name)
        if actor is not None:
            await asyncio.to_thread(_kill, actor)

    # ---- What workers say ----

    async def _listen(self, name: str, actor: Any) -> None:
        seen = 0
        self._heard[name] = time.monotonic()
        while True:
            try:
                seen = await self._hear(name, actor, seen)
            except (ActorUnavailableError, TimeoutError) as error:
                silent = time.monotonic() - self._heard[name]
                if silent > SILENCE_SECONDS:
                    raise _GivenUp(f"nothing was heard of its machine for {silent:.0f} s", True) from error
                await asyncio.sleep(0.5)

    async def _hear(self, name: str, actor: Any, seen: int) -> int:
        """Pass on what a worker said after the message `seen`; the number of the last one. What was not
        passed on is kept there."""
        silent, said = await self._answer(name, actor.receive.remote(seen))
        self._say({"kind": "alive", "worker": name, "silent": silent})
        for number, message, tail, files in cast("list[Said]", said):
            if message["kind"] == "ended":
                raise _GivenUp(str(message["reason"]), False)
            pieces = [self._pieces(name, actor, (number, i), size) for i, (_, size) in enumerate(files)]
            staged = await self._staged(pieces)
            names: list[JSON] = [[entry, path] for (entry, _), path in zip(files, staged, strict=True)]
            self._say({"kind": "said", "worker": name, "message": message, "files": names}, tail)
            seen = number
        return seen

    async def _answer(self, name: str, asked: Any) -> Any:
        """What a worker answers. Raises TimeoutError."""
        async with asyncio.timeout(POLL_SECONDS + SILENCE_SECONDS):
            found = await asked
        self._heard[name] = time.monotonic()
        return found

    async def _pieces(self, name: str, actor: Any, file: tuple[int, int], size: int) -> AsyncGenerator[bytes]:
        for offset in range(0, size, PIECE_BYTES):
            yield await self._answer(name, actor.read.remote(file, offset))
            self._say({"kind": "alive", "worker": name, "silent": 0.0})

    async def _staged(self, files: Sequence[AsyncGenerator[bytes]]) -> list[str]:
        """The passing names of files, all or none."""
        names: list[str] = []
        try:
            for pieces in files:
                names += [await self._stage(pieces)]
        except BaseException:
            discard([(name, "") for name in names])
            raise
        return names

    async def _stage(self, pieces: AsyncGenerator[bytes]) -> str:
        """Write a file, whole and flushed, under a passing name; that name. Raises _GivenUp where it cannot
        be written."""
        self._files += 1
        path = self._staging / f"{os.getpid()}-{self._files}.part"
        try:
            with open(path, "xb") as file:
                async for piece in pieces:
                    file.write(piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise _GivenUp(f"what it made cannot be written here ({error})", False) from error
            raise
        return str(path)

    async def _ended(self, name: str, node: str, error: Exception) -> None:
        said = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, ActorDiedError) and _NOT_BEGUN in str(error):
            self._say({"kind": "ended", "worker": name, "reason": said[-1].strip(), "lost": False})
            return
        # It ends by itself where it is not asked for long: then this side was the one that stood still.
        unasked = time.monotonic() - self._heard.get(name, time.monotonic()) > SILENCE_SECONDS
        await asyncio.sleep(2 * _NODES_SECONDS)  # by then it is known whether the whole node has gone
        gone = node not in self._alive or isinstance(error, ActorUnavailableError) or "node" in str(error)
        lost = unasked or gone
        reason = "its machine is not heard of any more" if lost else f"its process ended ({said[-1].strip()})"
        self._say({"kind": "ended", "worker": name, "reason": reason, "lost": lost})

    # ---- Nodes ----

    async def _watch_nodes(self) -> None:
        former: list[dict[str, JSON]] | None = None
        while True:
            async with asyncio.timeout(_NODES_TIMEOUT):
                nodes = await asyncio.to_thread(_nodes)
            self._alive = frozenset(str(node["id"]) for node in nodes)
            if nodes != former:
                self._say({"kind": "nodes", "nodes": cast("JSON", nodes)})
                former = nodes
            self._say({"kind": "beat"})
            await asyncio.sleep(_NODES_SECONDS)

    def _say(self, message: Mapping[str, JSON], tail: bytes = b"") -> None:
        with self._sending:
            self._sink.write(frames.encode(message, tail))
            self._sink.flush()


class _GivenUp(Exception):
    """Why nothing more is expected of a worker. lost: its machine is not heard of any more."""

    def __init__(self, reason: str, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


def _nodes() -> list[dict[str, JSON]]:
    """The nodes that live and run workers."""
    found: list[dict[str, JSON]] = []
    for node in cast("list[dict[str, Any]]", ray.nodes()):
        resources = cast("dict[str, float]", node.get("Resources") or {})
        workers = int(resources.get(SLOT, 0))
        if node.get("Alive") and workers:
            found.append(
                {
                    "id": node["NodeID"],
                    "address": node["NodeManagerAddress"],
                    "host": _name_of(node),
                    "workers": workers,
                    "gpus": resources.get("GPU", 0.0),
                    "memory": resources.get("memory", 0.0),
                }
            )
    return sorted(found, key=lambda n: str(n["id"]))


def _name_of(node: Mapping[str, Any]) -> str:
    """What a node was called when it was started, else its machine's name. Ray calls the others by their
    address."""
    given = str(node.get("NodeName") or "")
    name = str(node["NodeManagerHostname"]) if given in ("", node["NodeManagerAddress"]) else given
    return name.replace("/", "-")  # which separates it from the number of a worker


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor)
    except RayError:
        return


def _want(workers: int) -> None:
    """Tell Ray's autoscaler, where there is one, how many workers there should be."""
    from ray.autoscaler.sdk import request_resources  # pyright: ignore[reportMissingImports]

    request_resources(bundles=[{SLOT: 1}] * workers)


def main() -> None:
    """Arguments: the cluster's address, the folder of passing names, this machine's address in it or ''."""
    die_with_parent()
    address, staging, own = sys.argv[1:4]
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints must not get among the frames
    more: dict[str, Any] = {"_node_ip_address": own} if own else {}
    ray.init(
        address=address, namespace="loraloom", log_to_driver=False, logging_level=logging.WARNING, **more
    )
    asyncio.run(_main(source, sink, Path(staging)))


async def _main(source: IO[bytes], sink: IO[bytes], staging: Path) -> None:
    orders: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        while (frame := frames.read(source)) is not None:
            loop.call_soon_threadsafe(orders.put_nowait, cast("dict[str, Any]", frame[0]))
        loop.call_soon_threadsafe(orders.put_nowait, None)

    threading.Thread(target=read, name="loraloom-orders", daemon=True).start()
    await Driver(sink, staging).serve(orders)
    os._exit(0)  # its workers end with it


if __name__ == "__main__":
    main()
