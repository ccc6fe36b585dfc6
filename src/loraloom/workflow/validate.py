"""Whether a graph can run, and what exactly is wrong if it cannot, in ComfyUI's terms.

Only nodes that an output needs are looked at. Nothing here recurses: a chain of 10,000 nodes is a graph
like any other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from loraloom.errors import MissingModel
from loraloom.workflow.choices import INPUT_FOLDERS, FileNames, find_choice, nearest_choices
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link, Value
from loraloom.workflow.object_info import input_spec
from loraloom.workflow.report import Problem, Report
from loraloom.workflow.routes import compatible
from loraloom.workflow.schema import FileLister, Input, NodeSchema

_LONG_LIST = 20
# Types that only a link can bring: a literal value for one of them is a lost link.
_LINK_ONLY = frozenset({
    "MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE", "MASK", "CONTROL_NET", "SAMPLER", "SIGMAS",
    "GUIDER", "NOISE", "CLIP_VISION", "CLIP_VISION_OUTPUT", "STYLE_MODEL", "GLIGEN", "UPSCALE_MODEL",
    "HOOKS", "HOOK_KEYFRAMES", "AUDIO", "LORA_MODEL", "PHOTOMAKER", "MODEL_PATCH",
})  # fmt: skip


class OwnChecks(Protocol):
    """What node classes check with code of their own (ComfyUI's VALIDATE_INPUTS)."""

    def covers(self, class_type: str) -> Collection[str]:
        """Inputs whose range and choices the class checks itself; "input_types": the types of links too."""
        ...

    def problems(self, graph: Graph, node_ids: Iterable[str]) -> Iterable[Problem]:
        """What the classes of these nodes object to."""
        ...


def validate(
    graph: Graph,
    schemas: Mapping[str, NodeSchema],
    files: FileLister,
    targets: Collection[str] | None = None,
    own: OwnChecks | None = None,
) -> Report:
    """Checks every node that the outputs need against its class.

    schemas: the classes that can run.
    files: what the model folders (and "input") offer.
    targets: the output nodes to run, if not all.
    own: the checks that classes make themselves, in place of the general ones.
    """
    return _Validation(graph, schemas, files, own).run(targets)


class InvalidValue(Exception):
    """A value that cannot be what its input needs, in ComfyUI's words."""

    def __init__(self, kind: str, message: str, details: str, hint: str = "") -> None:
        super().__init__(f"{message}: {details}")
        self.kind, self.message, self.details, self.hint = kind, message, details, hint


class _Validation:
    def __init__(
        self, graph: Graph, schemas: Mapping[str, NodeSchema], files: FileLister, own: OwnChecks | None
    ) -> None:
        self._graph = graph
        self._own = own
        self._schemas = schemas
        self._files = FileNames(files)
        self._list_files: FileLister = self._files.names
        self._problems: list[Problem] = []
        self._notes: dict[str, None] = {}
        self._urls = {_bare(model.name): model.url for model in reversed(graph.models)}
        self._changed: dict[str, GraphNode] = {}

    def run(self, targets: Collection[str] | None) -> Report:
        outputs = self._outputs(targets)
        if not outputs:
            # Unknown classes are the likely reason: they may be the outputs.
            for node in self._graph.nodes.values():
                if node.class_type not in self._schemas:
                    self._unknown(node)
            if not self._problems:
                self._problems.append(_no_outputs(self._graph, targets))
            return Report(self._graph, tuple(self._problems))
        order, cycle = reach(self._graph, outputs)
        if cycle:
            self._cycle(cycle)
        for node_id in order:
            self._check(self._graph.nodes[node_id])
        if self._own is not None:
            changed = replace(self._graph, nodes={**self._graph.nodes, **self._changed})
            self._problems.extend(self._own.problems(changed, order))
        return self._report(outputs, order)

    def _covered(self, node: GraphNode) -> Collection[str]:
        return () if self._own is None else self._own.covers(node.class_type)

    def _outputs(self, targets: Collection[str] | None) -> list[str]:
        out: list[str] = []
        for node in self._graph.nodes.values():
            schema = self._schemas.get(node.class_type)
            if schema is not None and schema.output_node and (targets is None or node.id in targets):
                out.append(node.id)
        return out

    def _report(self, outputs: list[str], order: list[str]) -> Report:
        wrong = {p.node_id for p in self._problems}
        needed_by = _dependents(self._graph, order, outputs, wrong)
        failed = {output for found in needed_by.values() for output in found}
        nodes = {**self._graph.nodes, **self._changed}
        return Report(
            graph=replace(self._graph, nodes=nodes),
            problems=tuple(replace(p, outputs=needed_by.get(str(p.node_id), ())) for p in self._problems),
            outputs=tuple(output for output in outputs if output not in failed),
            failed_outputs=tuple(output for output in outputs if output in failed),
            notes=tuple(self._notes),
        )

    def _unknown(self, node: GraphNode) -> None:
        hint = (
            "ComfyUI has this class, Loraloom cannot run it yet"
            if node.class_type in core_schemas()
            else "it belongs to a custom node that Loraloom does not have"
        )
        self._problems.append(
            Problem(
                type="invalid_prompt",
                message=f"Cannot execute because node {node.class_type} does not exist.",
                details=f"Node ID '#{node.id}'",
                node_id=node.id,
                node_label=node.label(),
                class_type=node.class_type,
                hint=hint,
            )
        )

    def _cycle(self, cycle: list[str]) -> None:
        names = " → ".join(self._graph.nodes[node_id].label() for node_id in cycle[:20])
        node = self._graph.nodes[cycle[0]]
        self._add(node, "dependency_cycle", "Dependency cycle detected", names, {})

    def _check(self, node: GraphNode) -> None:
        schema = self._schemas.get(node.class_type)
        if schema is None:
            self._unknown(node)
            return
        changed: dict[str, Value] = {}
        for entry in schema.inputs:
            if entry.name not in node.inputs:
                if entry.required:
                    extra: dict[str, JSON] = {"input_name": entry.name}
                    self._add(node, "required_input_missing", "Required input is missing", entry.name, extra)
                continue
            value = node.inputs[entry.name]
            if isinstance(value, Link):
                self._check_link(node, entry, value)
                continue
            checked = self._check_literal(node, entry, value)
            if checked is not value:
                changed[entry.name] = checked
        if changed:
            self._changed[node.id] = replace(node, inputs={**node.inputs, **changed})

    def _check_link(self, node: GraphNode, entry: Input, link: Link) -> None:
        origin = self._graph.nodes.get(link.node)
        received: list[JSON] = [link.node, link.slot]
        if origin is None:
            details = f"{entry.name}: there is no node {link.node}"
            self._bad(node, entry, received, "bad_linked_input", "Bad linked input", details)
            return
        schema = self._schemas.get(origin.class_type)
        if schema is None:
            return
        if not 0 <= link.slot < len(schema.outputs):
            count = len(schema.outputs)
            details = f"{entry.name}: {origin.label()} has {count} output(s), there is no output {link.slot}"
            self._bad(node, entry, received, "bad_linked_input", "Bad linked input", details)
            return
        kind = schema.outputs[link.slot].type
        joins = compatible(kind, entry.type) or {kind, entry.type} == {"STRING", "COMBO"}
        if not joins and "input_types" not in self._covered(node):
            details = f"{entry.name}, received_type({kind}) mismatch input_type({entry.type})"
            message = "Return type mismatch between linked nodes"
            more: dict[str, JSON] = {"received_type": kind, "linked_node": received}
            self._bad(node, entry, received, "return_type_mismatch", message, details, more)

    def _check_literal(self, node: GraphNode, entry: Input, value: JSON) -> JSON:
        """The value as its input's type; the value itself, with a problem noted, if it cannot be."""
        covered = entry.name in self._covered(node)
        try:
            if entry.type == "COMBO":
                return value if covered else self._check_choice(node, entry, value)
            value = convert(entry, value)
            if not covered:
                check_range(entry, value)
        except InvalidValue as failure:
            self._bad(node, entry, value, failure.kind, failure.message, failure.details, hint=failure.hint)
        return value

    def _check_choice(self, node: GraphNode, entry: Input, value: JSON) -> JSON:
        choice = find_choice(entry, value, self._files)
        if choice is not None:
            if choice.note:
                self._notes[f"{node.label()}: {choice.note}"] = None
            return value if choice.value == value else choice.value
        offered = entry.all_choices(self._list_files)
        shown = f"(list of length {len(offered)})" if len(offered) > _LONG_LIST else f"{offered}"
        message, details = "Value not in list", f"{entry.name}: '{_short(value)}' not in {shown}"
        folder = entry.folders[0] if entry.folders else ""
        if not folder or not isinstance(value, str):
            close = nearest_choices(value, offered)
            hint = f"Nearest: {', '.join(close)}" if close else ""
            raise InvalidValue("value_not_in_list", message, details, hint)
        nearest = self._files.nearest(folder, value)
        missing = None
        if folder not in INPUT_FOLDERS:
            url = self._urls.get(_bare(value))
            missing = MissingModel(node.id, node.title or node.class_type, folder, value, nearest, url)
        hint = f"Nearest in {folder}: {', '.join(nearest)}" if nearest else f"Put it into the folder {folder}"
        self._bad(node, entry, value, "value_not_in_list", message, details, hint=hint, missing=missing)
        return value

    def _bad(
        self,
        node: GraphNode,
        entry: Input,
        value: JSON,
        kind: str,
        message: str,
        details: str,
        more: Mapping[str, JSON] | None = None,
        *,
        hint: str = "",
        missing: MissingModel | None = None,
    ) -> None:
        offers_many = entry.type == "COMBO" and len(entry.all_choices(self._list_files)) > _LONG_LIST
        config: JSON = None if offers_many else input_spec(entry, self._list_files)
        extra: dict[str, JSON] = {"input_name": entry.name, "input_config": config, "received_value": value}
        self._add(node, kind, message, details, {**extra, **(more or {})}, hint=hint, missing=missing)

    def _add(
        self,
        node: GraphNode,
        kind: str,
        message: str,
        details: str,
        extra: Mapping[str, JSON],
        *,
        hint: str = "",
        missing: MissingModel | None = None,
    ) -> None:
        self._problems.append(
            Problem(
                type=kind,
                message=message,
                details=details,
                node_id=node.id,
                node_label=node.label(),
                class_type=node.class_type,
                extra_info=extra,
                hint=hint,
                missing=missing,
            )
        )


def convert(entry: Input, value: JSON) -> JSON:
    """A literal as its input's type, by ComfyUI's rules ("3" is 3, 3.7 is 3, 1 is true, 5 is "5").

    Raises InvalidValue if it cannot be.
    """
    try:
        if entry.type == "INT":
            return value if type(value) is int else int(value)  # pyright: ignore[reportArgumentType]
        if entry.type == "FLOAT":
            number = float(value)  # pyright: ignore[reportArgumentType]
            if math.isnan(number):
                raise ValueError("not a number")
            return value if type(value) is float else number
        if entry.type == "STRING":
            return value if isinstance(value, str) else str(value)
        if entry.type == "BOOLEAN":
            return value if isinstance(value, bool) else bool(value)
    except (ValueError, TypeError, OverflowError) as error:
        message = f"Failed to convert an input value to a {entry.type} value"
        details = f"{entry.name}, {_short(value)}, {error}"
        raise InvalidValue("invalid_input_type", message, details) from error
    if entry.type in _LINK_ONLY and value is not None:
        hint = f"Link an output of type {entry.type} to it"
        raise InvalidValue("bad_linked_input", "Bad linked input", f"{entry.name}: {_short(value)}", hint)
    return value


def check_range(entry: Input, value: JSON) -> None:
    """Raises InvalidValue if a number lies outside the range of its input."""
    if not isinstance(value, int | float):
        return
    low, high = entry.options.get("min"), entry.options.get("max")
    if isinstance(low, int | float) and value < low:
        raise InvalidValue("value_smaller_than_min", f"Value {value} smaller than min of {low}", entry.name)
    if isinstance(high, int | float) and value > high:
        raise InvalidValue("value_bigger_than_max", f"Value {value} bigger than max of {high}", entry.name)


def reach(graph: Graph, outputs: Iterable[str]) -> tuple[list[str], list[str]]:
    """The nodes that the outputs need, each after what it needs, and one cycle if there is any."""
    order: list[str] = []
    cycle: list[str] = []
    open_nodes: dict[str, None] = {}
    done: set[str] = set()
    for output in outputs:
        if output in done:
            continue
        open_nodes[output] = None
        stack = [(output, iter(_needs(graph, output)))]
        while stack:
            node_id, needs = stack[-1]
            needed = next((n for n in needs if n not in done), None)
            if needed is None:
                stack.pop()
                del open_nodes[node_id]
                done.add(node_id)
                order.append(node_id)
            elif needed in open_nodes:
                if not cycle:
                    path = list(open_nodes)
                    cycle = [*path[path.index(needed) :], needed]
            else:
                open_nodes[needed] = None
                stack.append((needed, iter(_needs(graph, needed))))
    return order, cycle


def _needs(graph: Graph, node_id: str) -> list[str]:
    values = graph.nodes[node_id].inputs.values()
    return [value.node for value in values if isinstance(value, Link) and value.node in graph.nodes]


def _dependents(
    graph: Graph, order: list[str], outputs: list[str], wrong: Collection[str | None]
) -> dict[str, tuple[str, ...]]:
    """For every node that is wrong: the outputs that need it."""
    if not wrong:
        return {}
    users: dict[str, list[str]] = {}
    for node_id in order:
        for needed in _needs(graph, node_id):
            users.setdefault(needed, []).append(node_id)
    asked = set(outputs)
    found: dict[str, tuple[str, ...]] = {}
    budget = 2_000_000
    for node_id in wrong:
        if node_id is None:
            continue
        seen, stack = {node_id}, [node_id]
        while stack and budget > 0:
            for user in users.get(stack.pop(), ()):
                budget -= 1
                if user not in seen:
                    seen.add(user)
                    stack.append(user)
        found[node_id] = tuple(o for o in outputs if o in seen) if budget > 0 else tuple(asked)
    return found


def _no_outputs(graph: Graph, targets: Collection[str] | None) -> Problem:
    if targets is not None:
        hint = f"none of the chosen nodes ({', '.join(sorted(targets))}) is an output of the workflow"
    elif graph.nodes:
        hint = "add a node that keeps a result, such as SaveImage or PreviewImage"
    else:
        hint = "the workflow has no node that runs"
    return Problem("prompt_no_outputs", "Prompt has no outputs", "", hint=hint)


def _bare(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _short(value: JSON) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
