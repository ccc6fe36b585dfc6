"""Runs a graph and gives its events as they happen.

The nodes run in a thread of their own, so that progress and previews come through while a node works, and so
that the reader of the events may stop the run at any time.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Protocol, TypeAlias

from loraloom.engine.cache import Cache
from loraloom.engine.context import Surroundings
from loraloom.engine.events import Event
from loraloom.engine.execution import Execution, FindFile
from loraloom.engine.failures import FailurePolicy
from loraloom.engine.node import NodeType
from loraloom.engine.plan import order
from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON, Graph

_Queue: TypeAlias = "SimpleQueue[Event | BaseException | None]"


class CancelToken(Protocol):
    """Says whether the user has stopped the run; a threading.Event is one."""

    def is_set(self) -> bool: ...


def run(
    graph: Graph,
    nodes: Mapping[str, NodeType],
    *,
    targets: Iterable[str] | None = None,
    cache: Cache | None = None,
    services: object = None,
    extra_pnginfo: Mapping[str, JSON] | None = None,
    cancel: CancelToken | None = None,
    find_file: FindFile | None = None,
    inside: Callable[[], AbstractContextManager[object]] = nullcontext,
    policy: FailurePolicy = "fail_fast",
) -> Iterator[Event]:
    """The events of a run, ending with RunFinished, RunFailed or RunCancelled; see `events`.

    targets: the output nodes to run, by default all; nodes that none of them needs are ignored, even when
    their class is unknown. cache: results of earlier runs (kept by the caller; one run at a time may use
    it). find_file: where files named in the graph are, for the cache key (`ModelFolders.find`).
    inside: makes a context that the nodes run in, in their thread (torch's inference mode, say).
    policy: what becomes of the other nodes when one fails.
    Closing the iterator stops the run. Raises WorkflowError, before anything runs, when there is nothing to
    run, when a needed node is missing or of an unknown class, or when nodes need each other.
    """
    wanted = output_nodes(graph, nodes, targets)
    for node_id in order(graph.nodes, wanted):
        node = graph.nodes[node_id]
        if node.class_type not in nodes:
            raise WorkflowError(f"{node.label()}: no node class of that name is known")
    events: _Queue = SimpleQueue()
    abandoned = threading.Event()
    around = Surroundings(
        graph=graph,
        prompt=graph.to_api(),
        services=services,
        extra_pnginfo=dict(extra_pnginfo or {}),
        cache=cache or Cache("none"),
        emit=events.put,
        cancelled=lambda: abandoned.is_set() or (cancel is not None and cancel.is_set()),
    )
    execution = Execution(around, nodes, wanted, find_file, policy)

    def work() -> None:
        try:
            with inside():
                asyncio.run(execution.run())
        except BaseException as error:  # noqa: BLE001 - handed to the reader, who raises it
            events.put(error)
        else:
            events.put(None)

    return _events(work, events, abandoned)


def output_nodes(
    graph: Graph, nodes: Mapping[str, NodeType], targets: Iterable[str] | None = None
) -> tuple[str, ...]:
    """The nodes a run is for, in the order of the graph: its output nodes, or those of them in `targets`.

    Raises WorkflowError when there is none.
    """
    asked = None if targets is None else set(targets)
    found = tuple(
        node.id
        for node in graph.nodes.values()
        if node.class_type in nodes
        and nodes[node.class_type].schema.output_node
        and (asked is None or node.id in asked)
    )
    if not found:
        what = (
            "no node whose result is shown or saved" if asked is None else "none of the wanted output nodes"
        )
        raise WorkflowError(f"the workflow has {what}: add a node such as SaveImage or PreviewImage")
    return found


def _events(work: Callable[[], None], events: _Queue, abandoned: threading.Event) -> Iterator[Event]:
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="loraloom-run", daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        abandoned.set()
        thread.join()
