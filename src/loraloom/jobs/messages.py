"""Engine events as the JSON that leaves the worker."""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

from loraloom.atomic_file import FULL
from loraloom.engine.events import (
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodeNote,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarning,
    Partial,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from loraloom.errors import DiskFull
from loraloom.jobs.frames import Frame
from loraloom.workflow.graph import JSON
from loraloom.workflow.report import Problem

PREVIEW_INTERVAL_SECONDS = 0.15


class Encoder:
    """Turns one run's events into frames.

    previews: how pictures of unfinished work are made ("auto", "latent2rgb", "taesd"), which are sent as
        JPEG, a few per second; "": none are.
    """

    def __init__(self, previews: str) -> None:
        self._previews = previews
        self._last_preview = 0.0

    def frame(self, event: Event) -> Frame:
        """The frame of an event; its "kind" says which."""
        match event:
            case NodeProgress():
                return self._progress(event)
            case NodeFailed():
                return {"kind": "node_failed", **failure(event)}, b""
            case RunFailed(error, at, partial):
                said = describe(error) if at is None else failure(at)
                return {"kind": "failed", "error": cast("JSON", said), "partial": _partial(partial)}, b""
            case _:
                return _plain(event), b""

    def _progress(self, event: NodeProgress) -> Frame:
        message: dict[str, JSON] = {
            "kind": "progress",
            "node": event.node_id,
            "display": event.display_id,
            "value": event.value,
            "max": event.total,
        }
        now = time.monotonic()
        if not self._previews or event.preview is None or now - self._last_preview < PREVIEW_INTERVAL_SECONDS:
            return message, b""
        self._last_preview = now
        return message, jpeg(event.preview, self._previews)


def _plain(event: Event) -> dict[str, JSON]:
    match event:
        case RunStarted(nodes, targets):
            return {"kind": "run_started", "nodes": [*nodes], "targets": [*targets]}
        case NodesCached(nodes):
            return {"kind": "cached", "nodes": [*nodes]}
        case NodeStarted(node, display, class_type):
            return {"kind": "node_started", "node": node, "display": display, "class_type": class_type}
        case NodeFinished():
            return {
                "kind": "node_finished",
                "node": event.node_id,
                "display": event.display_id,
                "parent": event.parent_id,
                "class_type": event.class_type,
                "ui": dict(event.ui),
                "cached": event.cached,
            }
        case NodeNote(node, kind, payload):
            return {"kind": "note", "node": node, "note": kind, "payload": payload}
        case NodeWarning(node, text):
            return {"kind": "warning", "node": node, "message": text}
        case NodeBlocked(node, display, class_type, text):
            return {
                "kind": "blocked",
                "node": node,
                "display": display,
                "class_type": class_type,
                "message": text,
            }
        case RunFinished(executed, partial):
            return {"kind": "completed", "executed": [*executed], "partial": _partial(partial)}
        case RunCancelled(node, executed):
            return {"kind": "cancelled", "node": node, "executed": [*executed]}
        case _:
            raise TypeError(f"no message for {type(event).__name__}")


def _partial(found: Partial | None) -> JSON:
    if found is None:
        return None
    return {
        "failed": [*found.failed],
        "blocked": [*found.blocked],
        "blocked_outputs": [*found.blocked_outputs],
        "outputs": [*found.outputs],
    }


def failure(event: NodeFailed) -> dict[str, JSON]:
    """A node's failure, with what an error dialog shows."""
    return {
        **describe(event.exception),
        "message": event.message,
        "node": event.node_id,
        "display": event.display_id,
        "class_type": event.class_type,
        "title": event.title,
        "inputs": dict(event.inputs),
        "executed": [*event.executed],
        "blocked": [*event.blocked],
    }


def describe(error: BaseException) -> dict[str, JSON]:
    """An exception: type, message and traceback."""
    name = _type_of(error)
    text = str(error) or name
    lines: list[JSON] = [*traceback.format_tb(error.__traceback__)[-30:]]
    return {"type": name, "message": text, "exception_message": text, "traceback": lines}


def _type_of(error: BaseException) -> str:
    if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in FULL):
        return "disk_full"
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def jpeg(preview: object, method: str) -> bytes:
    """A preview as JPEG: a Pillow picture, or an object whose `picture(method=…)` makes one; else nothing."""
    make = cast("Callable[..., Any] | None", getattr(preview, "picture", None))
    picture = make(method=method) if make is not None else preview
    if not hasattr(picture, "save"):
        return b""
    buffer = io.BytesIO()
    cast("Any", picture).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def problem(found: Problem) -> dict[str, JSON]:
    """A problem as it leaves the worker; `read_problem` reads it."""
    return {
        "type": found.type,
        "message": found.message,
        "details": found.details,
        "node_id": found.node_id,
        "node_label": found.node_label,
        "class_type": found.class_type,
    }


def read_problem(data: JSON) -> Problem:
    return Problem(**cast("dict[str, Any]", data))
