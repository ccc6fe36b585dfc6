"""Jobs and their events in ComfyUI's words. Pure: what goes in and out is data."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

from loraloom.jobs.job import Job, Status
from loraloom.jobs.notices import Notice
from loraloom.workflow.graph import JSON

_STATUS = {
    Status.PENDING: "pending",
    Status.RUNNING: "in_progress",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
    Status.QUARANTINED: "failed",
}
STATUSES: Mapping[str, tuple[Status, ...]] = {
    "pending": (Status.PENDING,),
    "in_progress": (Status.RUNNING,),
    "completed": (Status.COMPLETED,),
    "failed": (Status.FAILED, Status.QUARANTINED),
    "cancelled": (Status.CANCELLED,),
}
_MEDIA = {"images": "images", "gifs": "video", "video": "video", "audio": "audio", "3d": "3d"}

Messages = list[tuple[str, dict[str, Any]]]


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


# ---- Lists ----


def queue_item(job: Job) -> list[JSON]:
    """An entry of `/queue`, and the "prompt" of a history entry."""
    extra: dict[str, JSON] = {**job.request.extra_data, "create_time": milliseconds(job.created)}
    if job.request.client_id is not None:
        extra["client_id"] = job.request.client_id
    targets: list[JSON] = [*(job.request.targets or ())]
    number = int(job.number) if job.number == int(job.number) else job.number
    return [number, job.id, dict(job.request.prompt), extra, targets]


def history_entry(job: Job) -> dict[str, JSON]:
    """An entry of `/history`."""
    result = job.result or {}
    messages: list[JSON] = [[kind, cast("JSON", data)] for kind, data in history_messages(job)]
    entry: dict[str, JSON] = {
        "prompt": queue_item(job),
        "outputs": result.get("outputs", {}),
        "status": {
            "status_str": "success" if job.status is Status.COMPLETED else "error",
            "completed": job.status is Status.COMPLETED,
            "messages": messages,
            **({"execution_summary": said} if (said := summary(job)) else {}),
        },
        "meta": result.get("meta", {}),
    }
    for name in ("receipts", "warnings"):
        if result.get(name):
            entry[name] = result[name]
    return entry


def summary(job: Job) -> dict[str, JSON]:
    """How far a job came whose nodes failed alone, in ComfyUI's words; nothing of other jobs."""
    partial, errors = (job.result or {}).get("partial"), (job.result or {}).get("errors")
    if not isinstance(partial, dict):
        return {}
    said: dict[str, JSON] = {
        "has_errors": True,
        "execution_error_count": len(errors) if isinstance(errors, list) else 0,
        "failed_node_ids": partial.get("failed", []),
        "blocked_node_ids": partial.get("blocked", []),
        "blocked_output_node_ids": partial.get("blocked_outputs", []),
        "successful_output_node_ids": partial.get("outputs", []),
    }
    return {**said, "completion_status": "partial_success"} if job.status is Status.COMPLETED else said


def _node_errors(job: Job) -> list[dict[str, JSON]]:
    """The errors of nodes that failed while others went on."""
    errors = (job.result or {}).get("errors")
    return [node_error(job.id, e) for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []


def node_error(job_id: str, error: Mapping[str, JSON]) -> dict[str, JSON]:
    """A failure that does not end the job."""
    return {**execution_error(job_id, error), "blocked_node_ids": error.get("blocked", [])}


def history_messages(job: Job) -> Messages:
    """What a client would have been told of a finished job, with times."""
    result = job.result or {}
    begun = result.get("started_ms", milliseconds(job.started))
    ended = result.get("finished_ms", milliseconds(job.finished))
    messages: Messages = [
        ("execution_start", {"prompt_id": job.id, "timestamp": begun}),
        ("execution_cached", {"nodes": result.get("cached", []), "prompt_id": job.id, "timestamp": begun}),
    ]
    messages += [("execution_node_error", {**error, "timestamp": ended}) for error in _node_errors(job)]
    if job.status is Status.COMPLETED:
        messages.append(("execution_success", {"prompt_id": job.id, "timestamp": ended, **summary(job)}))
    elif job.status is Status.CANCELLED:
        said = {"prompt_id": job.id, "node_id": None, "node_type": None, "executed": [], "timestamp": ended}
        messages.append(("execution_interrupted", said))
    else:
        messages.append(("execution_error", {**execution_error(job.id, job.error or {}), "timestamp": ended}))
    return messages


def job_item(job: Job) -> dict[str, JSON]:
    """An entry of `/jobs`, which frontends from 1.38 on ask for."""
    outputs = _files(job)
    entry: dict[str, JSON] = {
        "id": job.id,
        "status": _STATUS[job.status],
        "create_time": milliseconds(job.created),
        "priority": int(job.number),
        "outputs_count": len(outputs),
        "workflow_id": _workflow_id(job),
    }
    if job.started is not None:
        entry["execution_start_time"] = milliseconds(job.started)
    if job.finished is not None:
        entry["execution_end_time"] = milliseconds(job.finished)
    if outputs:
        entry["preview_output"] = next((o for o in outputs if o["type"] == "output"), outputs[-1])
    if job.error is not None:
        entry["execution_error"] = execution_error(job.id, job.error)
    return entry


def job_detail(job: Job) -> dict[str, JSON]:
    """The answer of `/jobs/{id}`."""
    result = job.result or {}
    messages: list[JSON] = [[kind, cast("JSON", data)] for kind, data in history_messages(job)]
    return {
        **job_item(job),
        "update_time": milliseconds(job.finished or job.started or job.created),
        "outputs": result.get("outputs", {}),
        "workflow": {"prompt": dict(job.request.prompt), "extra_data": dict(job.request.extra_data)},
        "execution_status": {
            "status_str": "success" if job.status is Status.COMPLETED else "error",
            "completed": job.status is Status.COMPLETED,
            "messages": messages if job.status.final else [],
        },
        "execution_meta": result.get("meta", {}),
        "receipts": result.get("receipts", []),
        "warnings": result.get("warnings", []),
    }


def execution_error(job_id: str, error: Mapping[str, JSON]) -> dict[str, JSON]:
    """A failure as the editor's error dialog wants it."""
    return {
        "prompt_id": job_id,
        "node_id": error.get("node") or "",
        "node_type": error.get("class_type") or "",
        "executed": error.get("executed", []),
        "exception_message": error.get("exception_message") or error.get("message") or "",
        "exception_type": error.get("type") or "",
        "traceback": error.get("traceback", []),
        "current_inputs": error.get("inputs", {}),
        "current_outputs": [],
    }


def _files(job: Job) -> list[dict[str, JSON]]:
    found: list[dict[str, JSON]] = []
    outputs = (job.result or {}).get("outputs")
    for node, shown in cast("dict[str, Any]", outputs or {}).items():
        for media, entries in shown.items() if isinstance(shown, dict) else ():
            for entry in cast("Sequence[Any]", entries if isinstance(entries, list) else ()):
                if isinstance(entry, dict) and "filename" in entry:
                    file = cast("dict[str, JSON]", entry)
                    kind = _MEDIA.get(cast("str", media), "images")
                    found.append(
                        {"subfolder": "", "type": "output", **file, "nodeId": node, "mediaType": kind}
                    )
    return found


def _workflow_id(job: Job) -> JSON:
    info = job.request.extra_data.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, dict) else None
    return workflow.get("id") if isinstance(workflow, dict) else None


# ---- Messages ----


CHANGES_STATES = frozenset({"cached", "node_started", "progress", "node_finished", "node_failed"})
"""Kinds of notices after which `progress_state` is another."""


def progress_state(job_id: str, states: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What every node of the running job is doing."""
    return "progress_state", {"prompt_id": job_id, "nodes": states}


def messages_for(notice: Notice, now_ms: int) -> Messages:
    """What a job's own client is told of a notice, beside `progress_state`."""
    if notice.job is None:
        return []
    said, job_id = notice.payload, notice.job.id
    stamped = {"prompt_id": job_id, "timestamp": now_ms}
    match notice.kind:
        case "run_started":
            return [("execution_start", stamped), ("execution_cached", {"nodes": [], **stamped})]
        case "cached":
            return [("execution_cached", {"nodes": said["nodes"], **stamped})]
        case "node_started":
            executing = {"node": said["node"], "display_node": said["display"], "prompt_id": job_id}
            return [("executing", executing)]
        case "progress":
            step = {"value": said["value"], "max": said["max"], "prompt_id": job_id, "node": said["node"]}
            return [("progress", step)]
        case "node_finished":
            if not said["ui"]:
                return []
            output = {
                "node": said["node"],
                "display_node": said["display"],
                "output": said["ui"],
                "prompt_id": job_id,
            }
            return [("executed", output)]
        case "blocked":
            return _blocked(said, job_id, now_ms)
        case "node_failed" if notice.job.request.policy != "fail_fast":
            return [("execution_node_error", {**node_error(job_id, said), "timestamp": now_ms})]
        case "completed":
            return [("execution_success", {**stamped, **summary(notice.job)}), _end(job_id)]
        case "cancelled":
            node = {"node_id": said.get("node"), "node_type": None, "executed": said.get("executed", [])}
            return [("execution_interrupted", {**stamped, **node}), _end(job_id)]
        case "failed" | "quarantined":
            error = execution_error(job_id, notice.job.error or {})
            return [("execution_error", {**error, "timestamp": now_ms}), _end(job_id)]
        case _:
            return []


def ended_messages(job: Job) -> Messages:
    """What a client that was not there is told of a job that has ended meanwhile."""
    result = job.result or {}
    outputs, meta = cast("dict[str, Any]", result.get("outputs", {})), result.get("meta")
    messages = [m for m in history_messages(job) if m[0] in ("execution_start", "execution_cached")]
    for node, shown in outputs.items():
        known = meta.get(node) if isinstance(meta, dict) else None
        display = known.get("display_node", node) if isinstance(known, dict) else node
        executed = {"node": node, "display_node": display, "output": shown, "prompt_id": job.id}
        messages.append(("executed", executed))
    ends = [m for m in history_messages(job) if m[0] not in ("execution_start", "execution_cached")]
    return [*messages, *ends, _end(job.id)]


def _end(job_id: str) -> tuple[str, dict[str, Any]]:
    return ("executing", {"node": None, "prompt_id": job_id})


def _blocked(said: Mapping[str, Any], job_id: str, now_ms: int) -> Messages:
    if said["message"] is None:
        return []
    error = {
        "node": said["node"],
        "class_type": said["class_type"],
        "type": "ExecutionBlocked",
        "message": f"Execution Blocked: {said['message']}",
    }
    return [("execution_error", {**execution_error(job_id, error), "timestamp": now_ms})]


def status(remaining: int) -> dict[str, Any]:
    """The data of a `status` message, and the answer of `GET /prompt`."""
    return {"status": {"exec_info": {"queue_remaining": remaining}}}


def preview_frame(picture: bytes, node: str, display: str, job_id: str, with_metadata: bool) -> bytes:
    """A preview as a binary message: event 4 for clients that understand it, else event 1."""
    if not with_metadata:
        return struct.pack(">II", 1, 1) + picture
    metadata = {
        "node_id": node,
        "prompt_id": job_id,
        "display_node_id": display,
        "parent_node_id": None if node == display else display,
        "real_node_id": node,
        "image_type": "image/jpeg",
    }
    text = json.dumps(metadata).encode()
    return struct.pack(">II", 4, len(text)) + text + picture
