"""Runs the nodes of one graph, with ComfyUI's semantics of laziness, lists, expansion and blocking."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

from loraloom.engine import calls, expansion
from loraloom.engine.cache import Entry, Key, key_of
from loraloom.engine.context import NodeContext, Surroundings, fitting
from loraloom.engine.events import (
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodesCached,
    NodeStarted,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from loraloom.engine.failures import FailurePolicy, Failures
from loraloom.engine.node import NodeType
from loraloom.engine.plan import CycleError, Plan, order, producers
from loraloom.engine.result import Blocked, NodeResult
from loraloom.errors import Cancelled, WorkflowError
from loraloom.file_identity import FileIdentity
from loraloom.workflow.graph import GraphNode, Link
from loraloom.workflow.schema import Input

FindFile: TypeAlias = Callable[[str, str], Path | None]
"""Folder kind and file name → the file, when there is one."""

_CANCEL_POLL_SECONDS = 0.1
MAX_NODES = 100_000
"""Of a run, those of expansions included: a loop that does not end is an error, not the end of memory."""
MAX_EXPANSIONS = 2_000
"""How deep expansions may lie in one another; a loop that expands lies as deep as it has turned."""


class _NodeError(Exception):
    def __init__(self, event: NodeFailed) -> None:
        self.event = event


class Execution:
    """One run of one graph: the nodes as they are now (expansions included), their results, their plan."""

    def __init__(
        self,
        around: Surroundings,
        types: Mapping[str, NodeType],
        targets: tuple[str, ...],
        find_file: FindFile | None,
        policy: FailurePolicy = "fail_fast",
    ) -> None:
        self._around, self._types, self._targets, self._find_file = around, types, targets, find_file
        self._nodes, self._parents = around.nodes, around.parents
        self._keys: dict[str, Key] = {}
        self._results: dict[str, Entry] = {}
        self._expanded: dict[str, tuple[list[NodeResult], NodeContext]] = {}
        self._executed: dict[str, None] = {}
        self._outputs: dict[str, None] = {}
        self._announced: set[str] = set()
        self._roots: dict[str, tuple[str, int]] = {}
        self._running: str | None = None
        self._inputs_of: dict[str, dict[str, Input]] = {}
        self._failures = Failures(policy, self._nodes, self._parents, self._display)
        self._plan = Plan(
            links=lambda i: producers(self._nodes[i]),
            needs=self._needs,
            available=self._available,
            urgent=self._urgent,
            release=self._release,
        )

    async def run(self) -> None:
        """Run to the end; what happens is said in events, the last of which tells how it ended."""
        emit = self._around.emit
        try:
            await self._run()
        except _NodeError as error:
            with suppress(Cancelled):
                self._around.tell_notes(wait=True)
            emit(error.event)
            emit(RunFailed(error.event.exception, error.event))
        except Cancelled:
            self._around.tell_notes(wait=False)
            emit(RunCancelled(self._running, tuple(self._executed)))
        except CycleError as error:
            failure = self._failure(error.nodes[0], error, {})
            emit(failure)
            emit(RunFailed(error, failure))
        except WorkflowError as error:
            emit(RunFailed(error))
        else:
            partial = self._failures.partial(self._plan.blocked, self._outputs, self._targets)
            first = self._failures.first
            if partial is not None and first is not None and not partial.outputs:
                emit(RunFailed(first.exception, first, partial))
            else:
                emit(RunFinished(tuple(self._executed), partial))

    async def _run(self) -> None:
        needed = order(self._nodes, self._targets)
        self._around.emit(RunStarted(needed, self._targets))
        await self._find_keys(needed)
        classes = {i: self._nodes[i].class_type for i in needed}
        self._around.cache.begin(self._keys, classes)
        self._announce_cached(needed)
        for target in self._targets:
            self._plan.add(target)
        tasks: set[asyncio.Task[None]] = set()
        try:
            while len(self._plan):
                self._around.check_cancelled()
                node_id = self._plan.next()
                if node_id is not None:
                    tasks.add(asyncio.create_task(self._step(node_id)))
                    await asyncio.sleep(0)
                elif tasks:
                    await asyncio.wait(
                        tasks, timeout=_CANCEL_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                else:
                    cycle = self._plan.cycle()
                    raise CycleError(cycle, (self._nodes[i].label() for i in cycle))
                for task in [t for t in tasks if t.done()]:
                    tasks.discard(task)
                    self._settle(task)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._around.tell_notes(wait=True)

    def _settle(self, step: asyncio.Task[None]) -> None:
        """Go on after a step, also after one that has failed where the run does not end with it."""
        try:
            step.result()
        except _NodeError as error:
            if self._failures.ends_run(error.event.exception):
                raise
            known = len(self._plan.blocked)
            self._plan.fail(error.event.node_id)
            blocked = map(self._display, tuple(self._plan.blocked)[known:])
            event = replace(error.event, blocked=tuple(dict.fromkeys(blocked)))
            self._failures.add(event)
            for node_id in self._executed:
                if self._failures.incomplete(node_id):
                    self._around.cache.forget(self._keys[node_id])
            self._around.emit(event)

    # ---- What the plan asks ----

    def _declared(self, class_type: str) -> dict[str, Input]:
        if class_type not in self._inputs_of:
            self._inputs_of[class_type] = {i.name: i for i in self._types[class_type].schema.inputs}
        return self._inputs_of[class_type]

    def _is_lazy(self, node: GraphNode, name: str) -> bool:
        declared = self._declared(node.class_type).get(name)
        return declared is not None and declared.lazy and self._types[node.class_type].check_lazy is not None

    def _needs(self, node_id: str) -> tuple[str, ...]:
        node = self._nodes[node_id]
        strict = (link.node for name, link in node.links().items() if not self._is_lazy(node, name))
        return tuple(dict.fromkeys(strict))

    def _urgent(self, node_id: str) -> bool:
        kind = self._types[self._nodes[node_id].class_type]
        return kind.schema.output_node or inspect.iscoroutinefunction(kind.function)

    def _available(self, node_id: str) -> bool:
        if node_id in self._results:
            return True
        entry = self._around.cache.get(self._keys[node_id])
        if entry is not None:
            self._results[node_id] = entry
        return entry is not None

    def _release(self, node_id: str) -> None:
        self._results.pop(node_id, None)

    # ---- Keys ----

    async def _find_keys(self, node_ids: tuple[str, ...]) -> None:
        for node_id in node_ids:
            node = self._nodes[node_id]
            if node.class_type not in self._types:
                raise WorkflowError(f"{node.label()}: no node class of that name is known")
            self._keys[node_id] = key_of(node, self._keys, await self._facts(node))

    async def _facts(self, node: GraphNode) -> list[object]:
        kind = self._types[node.class_type]
        facts: list[object] = []
        if {"UNIQUE_ID", "DYNPROMPT"} & set(kind.schema.hidden.values()):
            facts.append(node.id)
        for declared in kind.schema.inputs:
            value = node.inputs.get(declared.name)
            if declared.folders and isinstance(value, str):
                facts.append([declared.name, self._file_facts(declared, value)])
        if kind.is_changed is not None:
            literals = {
                name: [None if isinstance(value, Link) else value]
                for name, value in node.inputs.items()
                if name in self._declared(node.class_type)
            }
            run = NodeContext(self._around, node, self._display(node.id))
            asked = calls.calls_for(literals, kind.schema.input_is_list)
            try:
                said = await calls.call_all(
                    kind.is_changed, (fitting(kind.is_changed, c, run) for c in asked)
                )
            except Exception:  # noqa: BLE001 - a node whose state cannot be told has to run
                said = [math.nan]
            facts.append(said)
        return facts

    def _file_facts(self, declared: Input, name: str) -> object:
        for folder in declared.folders if self._find_file else ():
            path = cast("FindFile", self._find_file)(folder, name)
            if path is not None:
                found = FileIdentity.of(path)
                return [found.path, *found.state]
        return None

    def _announce_cached(self, needed: tuple[str, ...]) -> None:
        found = [(i, entry) for i in needed if (entry := self._around.cache.get(self._keys[i])) is not None]
        if found:
            self._around.emit(NodesCached(tuple(i for i, _ in found)))
            for node_id, entry in found:
                self._repeat(node_id, entry)

    def _repeat(self, node_id: str, entry: Entry) -> None:
        self._announced.add(node_id)
        for event in entry.said:
            self._around.say(replace(event, node_id=node_id), self._display(node_id))

    # ---- One node ----

    async def _step(self, node_id: str) -> None:
        node = self._nodes[node_id]
        kind = self._types[node.class_type]
        self._running = node_id
        inputs: dict[str, list[object]] = {}
        try:
            if node_id in self._expanded:
                self._join(node, kind)
            elif (entry := self._around.cache.get(self._keys[node_id])) is not None:
                self._finish_cached(node, entry)
            else:
                inputs, missing = self._inputs(node, kind)
                run = NodeContext(self._around, node, self._display(node_id))
                if missing and await self._asks_for_more(node, kind, inputs, missing, run):
                    return
                await self._call(node, kind, inputs, run)
        except Cancelled:
            raise
        except Exception as error:
            raise _NodeError(self._failure(node_id, error, inputs)) from error

    def _inputs(self, node: GraphNode, kind: NodeType) -> tuple[dict[str, list[object]], set[str]]:
        """The values of every input, as lists; and the names of those that have not been computed."""
        inputs: dict[str, list[object]] = {}
        missing: set[str] = set()
        declared = self._declared(node.class_type)
        for name, value in node.inputs.items():
            if name not in declared and not kind.takes_extra:
                continue
            if not isinstance(value, Link) or (name in declared and declared[name].options.get("rawLink")):
                inputs[name] = [value]
            elif value.node in self._results:
                inputs[name] = self._output(node, value)
            else:
                inputs[name] = [None]
                missing.add(name)
        return inputs, missing

    def _output(self, node: GraphNode, link: Link) -> list[object]:
        outputs = self._results[link.node].outputs
        if not 0 <= link.slot < len(outputs):
            producer = self._nodes[link.node].label()
            raise WorkflowError(
                f"{node.label()} takes output {link.slot} of {producer}, which has {len(outputs)} outputs"
            )
        return outputs[link.slot]

    async def _asks_for_more(
        self,
        node: GraphNode,
        kind: NodeType,
        inputs: dict[str, list[object]],
        missing: set[str],
        run: NodeContext,
    ) -> bool:
        """Let the node wait for those missing inputs that it asks for; whether it asked for any."""
        check = cast("Callable[..., object]", kind.check_lazy)
        whole = kind.schema.input_is_list
        asked = [c for c in calls.calls_for(inputs, whole) if calls.blocked_by(c, whole) is None]
        wanted: set[object] = set()
        for answer in await calls.call_all(check, (fitting(check, c, run) for c in asked)):
            if isinstance(answer, list | tuple | set | frozenset):
                wanted.update(cast("list[object]", answer))
        names = sorted(missing & wanted)
        for name in names:
            self._plan.require(cast("Link", node.inputs[name]).node, node.id)
        if names:
            self._plan.postpone(node.id)
        return bool(names)

    async def _call(
        self, node: GraphNode, kind: NodeType, inputs: dict[str, list[object]], run: NodeContext
    ) -> None:
        self._around.emit(NodeStarted(node.id, run.display_id, node.class_type, node.title))
        values = await calls.call_all(kind.function, self._prepared(kind, inputs, run))
        results = [calls.returned(value, kind) for value in values]
        if any(result.expand is not None for result in results):
            await self._expand(node, results, run)
            return
        outputs = calls.merged_outputs([r.outputs for r in results], kind)
        self._finish(node, Entry(outputs, calls.merged_ui(results), tuple(run.said)))

    def _prepared(
        self, kind: NodeType, inputs: dict[str, list[object]], run: NodeContext
    ) -> Iterator[calls.Call | Blocked]:
        whole = kind.schema.input_is_list
        silent = False
        for call in calls.calls_for(inputs, whole):
            run.check_cancelled()
            block = calls.blocked_by(call, whole)
            if block is None:
                yield {**call, "run": run} if kind.takes_run else call
                continue
            if block.message is not None or not silent:
                self._around.emit(NodeBlocked(run.node_id, run.display_id, kind.name, block.message))
            silent = True
            yield Blocked()

    # ---- Expansion ----

    async def _expand(self, node: GraphNode, results: list[NodeResult], run: NodeContext) -> None:
        """Add the nodes that a node is replaced by; it waits for those whose outputs become its own."""
        root, depth = self._roots.get(node.id, (node.id, 0))
        more = sum(len(result.expand.nodes) for result in results if result.expand is not None)
        if depth >= MAX_EXPANSIONS or len(self._nodes) + more > MAX_NODES:
            raise WorkflowError(
                f"{node.label()} goes on expanding: there are {len(self._nodes)} nodes, {depth} expansions "
                f"deep, at most {MAX_NODES} and {MAX_EXPANSIONS} are run; does a loop not end?"
            )
        placed, new = expansion.placed(node.id, results)
        for fresh in new:
            self._nodes[fresh.id], self._parents[fresh.id] = fresh, node.id
            self._roots[fresh.id] = root, depth + 1
        added = [fresh.id for fresh in new]
        for node_id in added:
            self._keys.pop(node_id, None)
        await self._find_keys(order(self._nodes, added, known=self._keys))
        self._expanded[node.id] = placed, run
        for node_id in added:
            if self._types[self._nodes[node_id].class_type].schema.output_node:
                self._plan.add(node_id)
        links = [o for result in placed for o in result.outputs if isinstance(o, Link)]
        for link in links:
            if link.node not in self._nodes:
                raise WorkflowError(f"an output was linked to node {link.node}, which is not there")
            await self._find_keys(order(self._nodes, (link.node,), known=self._keys))
            self._plan.require(link.node, node.id)
        self._plan.postpone(node.id)

    def _join(self, node: GraphNode, kind: NodeType) -> None:
        """The outputs of an expanded node, once the nodes in its place have run."""
        results, run = self._expanded.pop(node.id)
        merged: tuple[list[object], ...] = tuple([] for _ in kind.schema.outputs)
        for result in results:
            for output, into, value in zip(kind.schema.outputs, merged, result.outputs, strict=False):
                if isinstance(value, Link):
                    into.extend(self._output(node, value))
                elif output.is_list and not isinstance(value, Blocked):
                    into.extend(cast("list[object]", value))
                else:
                    into.append(value)
        self._finish(node, Entry(merged, calls.merged_ui(results), tuple(run.said)))

    # ---- The end of a node ----

    def _finish(self, node: GraphNode, entry: Entry) -> None:
        if not self._failures.incomplete(node.id):
            self._around.cache.put(self._keys[node.id], entry, self._keys.get(self._root(node.id)))
        self._executed[node.id] = None
        self._deliver(node, entry, cached=False)

    def _finish_cached(self, node: GraphNode, entry: Entry) -> None:
        if node.id not in self._announced:
            self._around.emit(NodesCached((node.id,)))
            self._repeat(node.id, entry)
        self._deliver(node, entry, cached=True)

    def _deliver(self, node: GraphNode, entry: Entry, cached: bool) -> None:
        self._results[node.id] = entry
        if self._types[node.class_type].schema.output_node:
            self._outputs[node.id] = None
        counts = tuple(len(values) for values in entry.outputs)
        display, parent = self._display(node.id), self._parents.get(node.id)
        self._around.emit(NodeFinished(node.id, display, node.class_type, entry.ui, counts, cached, parent))
        self._plan.finish(node.id)

    def _failure(self, node_id: str, error: BaseException, inputs: Mapping[str, list[object]]) -> NodeFailed:
        node = self._nodes[node_id]
        said = {name: calls.summary(values) for name, values in inputs.items()}
        display = self._display(node_id)
        return NodeFailed(node_id, display, node.class_type, node.title, error, said, tuple(self._executed))

    def _root(self, node_id: str) -> str:
        return self._roots.get(node_id, (node_id, 0))[0]

    _display = _root
