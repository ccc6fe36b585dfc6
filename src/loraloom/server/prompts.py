"""Prompts as clients send them → requests for the queue, or the answer that says what is wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from loraloom.engine.failures import POLICIES, FailurePolicy
from loraloom.engine.plan import order
from loraloom.errors import InputError, WorkflowError
from loraloom.jobs.job import Request
from loraloom.jobs.messages import read_problem
from loraloom.server.state import ServerState
from loraloom.server.webhook_address import parse as parse_address
from loraloom.workflow.api_format import is_api, parse_api
from loraloom.workflow.graph import JSON, Graph, kind_of
from loraloom.workflow.implemented import known_schemas
from loraloom.workflow.report import Problem, Report
from loraloom.workflow.ui_document import is_ui
from loraloom.workflow.ui_format import parse_ui

_LARGE = 200
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
    await state.all_classes()
    prompt = body.get("prompt")
    large = (isinstance(prompt, dict) and len(prompt) > _LARGE) or "workflow" in body
    report, extra = await _checked(body, state, large)
    if any(_may_have_changed(p, report.graph, state) for p in report.problems):
        await state.learn_anew()
        report, extra = await _checked(body, state, large)
    if not report.outputs:
        raise BadPrompt(report.to_response())
    client_id = body.get("client_id")
    request = Request(
        prompt=report.graph.to_api(),
        extra_data=extra,
        targets=report.outputs,
        client_id=client_id if isinstance(client_id, str) and len(client_id) <= 200 else None,
        webhook=_webhook(body),
        policy=_policy(body),
    )
    own = state.own
    if own is not None and any(own.covers(node.class_type) for node in report.graph.nodes.values()):
        report = _with(report, await _own_problems(request, state))
        if not report.outputs:
            raise BadPrompt(report.to_response())
        request = replace(request, targets=report.outputs)
    return Accepted(request, report.to_response().get("node_errors", {}), report.notes)


async def _checked(
    body: Mapping[str, JSON], state: ServerState, large: bool
) -> tuple[Report, dict[str, JSON]]:
    return await asyncio.to_thread(_validated, body, state) if large else _validated(body, state)


def _may_have_changed(problem: Problem, graph: Graph, state: ServerState) -> bool:
    """Whether what is no choice could have become one: those of node packs are known as last declared."""
    node = graph.nodes.get(problem.node_id or "")
    schema = None if node is None else state.schemas.get(node.class_type)
    packs = schema is not None and schema.python_module.startswith("custom_nodes.")
    return packs and problem.type == "value_not_in_list"


async def _own_problems(request: Request, state: ServerState) -> list[Problem]:
    """What the nodes' own code objects to; nothing when the worker does not answer, then the run will say."""
    try:
        answer = await state.dispatcher.check(request)
    except TimeoutError:
        return []
    return [read_problem(data) for data in cast("list[JSON]", answer)]


def _with(report: Report, found: list[Problem]) -> Report:
    """The report with further problems, and without the outputs that need their nodes."""
    wrong = {p.node_id for p in found}
    needed = {output: wrong & set(order(report.graph.nodes, (output,))) for output in report.outputs}
    problems = [replace(p, outputs=tuple(o for o, w in needed.items() if p.node_id in w)) for p in found]
    problems = [p for p in problems if p.outputs]
    outputs = tuple(output for output, nodes in needed.items() if not nodes)
    return replace(report, problems=(*report.problems, *problems), outputs=outputs)


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


def _validated(body: Mapping[str, JSON], state: ServerState) -> tuple[Report, dict[str, JSON]]:
    graph, extra = _graph(body, state)
    if len(graph.nodes) > state.settings.max_nodes:
        raise problem("invalid_prompt", f"the prompt has more than {state.settings.max_nodes} nodes")
    report = state.validate(graph, _targets(body))
    return replace(report, notes=(*graph.notes, *report.notes)), extra


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
            details = (
                'send {"prompt": …} with the workflow in it'
                if is_api(dict(body)) or is_ui(dict(body))
                else ""
            )
            raise problem("no_prompt", "No prompt provided", details or "No prompt provided")
        if not isinstance(prompt, dict):
            raise problem("invalid_prompt", f"prompt is {kind_of(prompt)}, expected an object")
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


def _policy(body: Mapping[str, JSON]) -> FailurePolicy:
    asked = body.get("node_failure_policy")
    if asked is None:
        return "fail_fast"
    if asked not in POLICIES:
        raise problem("invalid_node_failure_policy", f"node_failure_policy must be {' or '.join(POLICIES)}")
    return asked


def _webhook(body: Mapping[str, JSON]) -> str | None:
    url = body.get("webhook")
    if url is None:
        return None
    if not isinstance(url, str):
        raise problem("invalid_webhook", "webhook must be an http or https address")
    try:
        parse_address(url)
    except InputError as error:
        raise problem("invalid_webhook", str(error)) from error
    return url
