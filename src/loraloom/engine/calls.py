"""Calls a node's function, once per list item, and puts what it returns together.

Every output is a list of values. A class with `input_is_list` receives the lists as they are; any other is
called once per item of its longest input, where shorter lists repeat their last item.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, cast

from loraloom.engine.node import NodeType
from loraloom.engine.result import Blocked, NodeResult
from loraloom.workflow.graph import JSON

Call: TypeAlias = dict[str, object]


def calls_for(inputs: Mapping[str, Sequence[object]], input_is_list: bool) -> list[Call]:
    """The keyword arguments of every call."""
    if input_is_list or not inputs:
        return [dict(inputs)]
    if not all(inputs.values()):
        return []
    count = max(len(values) for values in inputs.values())
    return [{name: v[min(i, len(v) - 1)] for name, v in inputs.items()} for i in range(count)]


def blocked_by(call: Call, input_is_list: bool) -> Blocked | None:
    """The first blocked input of a call."""
    for value in call.values():
        items = cast("list[object]", value) if input_is_list else (value,)
        for item in items:
            if isinstance(item, Blocked):
                return item
    return None


async def call_all(function: Callable[..., object], calls: Iterable[Call | Blocked]) -> list[object]:
    """What every call returns, in order; a blocked call returns what blocks it. Async calls overlap."""
    results: list[object] = []
    pending: dict[int, Awaitable[object]] = {}
    try:
        for index, call in enumerate(calls):
            result = call if isinstance(call, Blocked) else function(**call)
            if inspect.isawaitable(result):
                pending[index] = asyncio.ensure_future(result)
            results.append(result)
        for index, value in zip(pending, await asyncio.gather(*pending.values()), strict=True):
            results[index] = value
    finally:
        for task in pending.values():
            cast("asyncio.Future[object]", task).cancel()
    return results


def returned(value: object, node: NodeType) -> NodeResult:
    """What a function returned, as outputs; TypeError if there are more or fewer than the class has."""
    count = len(node.schema.outputs)
    if isinstance(value, NodeResult):
        result = value
    elif isinstance(value, Blocked):
        return NodeResult((value,) * count)
    elif isinstance(value, tuple) and not node.single:
        result = NodeResult(cast("tuple[object, ...]", value))
    else:
        result = NodeResult() if value is None and count != 1 else NodeResult((value,))
    if len(result.outputs) != count and (result.outputs or not result.ui):
        raise TypeError(f"{node.name} returned {len(result.outputs)} outputs, expected {count}")
    return result


def merged_outputs(results: Sequence[tuple[object, ...]], node: NodeType) -> tuple[list[object], ...]:
    """The values of every output over all calls; outputs that are lists are joined."""
    merged: list[list[object]] = []
    for index, output in enumerate(node.schema.outputs):
        values: list[object] = []
        for outputs in results:
            if index >= len(outputs):
                continue
            value = outputs[index]
            if output.is_list and not isinstance(value, Blocked):
                values.extend(cast("Iterable[object]", value))
            else:
                values.append(value)
        merged.append(values)
    return tuple(merged)


def merged_ui(results: Iterable[NodeResult]) -> dict[str, JSON]:
    """What an editor shows, over all calls: lists are joined, of other values the last one counts."""
    merged: dict[str, JSON] = {}
    for result in results:
        for name, value in result.ui.items():
            known = merged.get(name)
            joins = isinstance(known, list) and isinstance(value, list | tuple)
            if joins:
                merged[name] = [*cast("list[JSON]", known), *cast("list[JSON]", value)]
            else:
                merged[name] = cast("JSON", list(value)) if isinstance(value, tuple) else value
    return merged


def summary(value: object) -> JSON:
    """A value in a few words, for a message about a node that failed."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= 500 else value[:500] + "…"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} {[*cast('Iterable[int]', shape)]}"
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [summary(item) for item in items[:8]]
    return type(value).__name__
