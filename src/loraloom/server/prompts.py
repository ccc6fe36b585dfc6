"""Prompts as clients send them → requests for the queue, or the answer that says what is wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from loraloom.errors import WorkflowError
from loraloom.jobs.job import Request
from loraloom.server.state import ServerState
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.graph import JSON, Graph
from loraloom.workflow.implemented import known_schemas
from loraloom.workflow.ui_document import is_ui
from loraloom.workflow.ui_format import parse_ui
from loraloom.workflow.validate import validate

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BadPrompt(Exception):
    """A prompt that is not queued; `body` is ComfyUI's answer (status 400)."""

    def __init__(self, body: Mapping[str, JSON]) -> None:
        self.body = dict(body)
        super().__init__(str(body))


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that can run, and what is wrong with those of its outputs that cannot."""

    request: Request
    node_errors: JSON
    notes: tuple[str, ...] = ()


def problem(kind: str, message: str, details: str = "") -> BadPrompt:
    error: dict[str, JSON] = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return BadPrompt({"error": error, "node_errors": {}})


async def accept(body: Mapping[str, JSON], state: ServerState) -> Accepted:
    """Read and validate the body of `POST /prompt`; raises BadPrompt.

    `prompt` is a graph in API format; `workflow`, which ComfyUI does not take, one in the editor's.
    """
    if len(cast("dict[str, JSON]", body.get("prompt") or {})) > 200 or "workflow" in body:
        return await asyncio.to_thread(_accept, body, state)
    return _accept(body, state)


def job_id_of(body: Mapping[str, JSON]) -> str | None:
    """The id that a client gives its job; raises BadPrompt for one that is not letters and digits."""
    job_id = body.get("prompt_id")
    if job_id is None:
        return None
    if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
        raise problem("invalid_prompt_id", "prompt_id must be 1 to 64 letters, digits or dashes")
    return job_id


def number_of(body: Mapping[str, JSON]) -> float | None:
    number = body.get("number")
    if isinstance(number, str):
        try:
            number = float(number)
        except ValueError as error:
            raise problem("invalid_number", "number must be a number") from error
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e15:
        raise problem("invalid_number", "number must be a number")
    return float(number)


def _accept(body: Mapping[str, JSON], state: ServerState) -> Accepted:
    graph, extra = _graph(body, state)
    if len(graph.nodes) > state.settings.max_nodes:
        raise problem("invalid_prompt", f"the prompt has more than {state.settings.max_nodes} nodes")
    targets = _targets(body)
    report = validate(graph, state.schemas, state.files.list, targets)
    response = report.to_response()
    if not report.outputs:
        raise BadPrompt(response)
    client_id = body.get("client_id")
    request = Request(
        prompt=report.graph.to_api(),
        extra_data=extra,
        targets=report.outputs,
        client_id=client_id if isinstance(client_id, str) and len(client_id) <= 200 else None,
        webhook=_webhook(body),
    )
    return Accepted(request, response.get("node_errors", {}), (*graph.notes, *report.notes))


def _graph(body: Mapping[str, JSON], state: ServerState) -> tuple[Graph, dict[str, JSON]]:
    given = body.get("extra_data")
    extra = dict(given) if isinstance(given, dict) else {}
    try:
        if "prompt" not in body and isinstance(workflow := body.get("workflow"), dict):
            if not is_ui(workflow):
                return parse_api(workflow), extra
            graph = parse_ui(workflow, schemas={**known_schemas(), **state.schemas})
            info = extra.get("extra_pnginfo")
            extra["extra_pnginfo"] = {**(info if isinstance(info, dict) else {}), "workflow": workflow}
            return graph, extra
        prompt = body.get("prompt")
        if prompt is None:
            raise problem("no_prompt", "No prompt provided", "No prompt provided")
        if not isinstance(prompt, dict):
            raise problem("invalid_prompt", f"prompt is a {type(prompt).__name__}, expected an object")
        return parse_api(prompt), extra
    except WorkflowError as error:
        raise problem("invalid_prompt", str(error)) from error


def _targets(body: Mapping[str, JSON]) -> tuple[str, ...] | None:
    targets = body.get("partial_execution_targets")
    if targets is None:
        return None
    if not isinstance(targets, list) or not all(isinstance(t, str | int) for t in targets):
        raise problem("invalid_prompt", "partial_execution_targets must be a list of node ids")
    return tuple(str(t) for t in targets)


def _webhook(body: Mapping[str, JSON]) -> str | None:
    url = body.get("webhook")
    if url is None:
        return None
    if not isinstance(url, str) or not re.match(r"https?://[^\s/]", url) or len(url) > 2000:
        raise problem("invalid_webhook", "webhook must be an http or https address")
    return url
