"""A pack's class → NodeType: hidden inputs, instances, values and results on their way in and out."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

from loraloom.custom_nodes.current import calling
from loraloom.custom_nodes.declaration import plain, read_schema, sections_of
from loraloom.custom_nodes.dynamic_prompt import DynamicPrompt, is_link
from loraloom.engine.node import NodeRun, NodeType
from loraloom.engine.result import Blocked, NodeResult
from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON, Graph, GraphNode, Link, Value


def node_type(
    name: str, cls: type, *, display_name: str = "", python_module: str = "custom_nodes"
) -> NodeType:
    """The class as the engine runs it. Raises what `read_schema` raises."""
    return _Adapter(name, cls, display_name, python_module).node_type()


class _Adapter:
    """Calls the methods of one class."""

    def __init__(self, name: str, cls: type, display_name: str, python_module: str) -> None:
        self._class = cast("Any", cls)
        self._declared_now = partial(read_schema, name, cls, display_name, python_module)
        self._schema = self._declared_now()
        self._declared = {i.name for i in self._schema.inputs} | {*self._schema.hidden}
        self._function: str = self._class.FUNCTION

    def node_type(self) -> NodeType:
        own = self._class
        is_async = inspect.iscoroutinefunction(getattr(own, self._function))
        states = hasattr(own, "IS_CHANGED") or getattr(own, "NOT_IDEMPOTENT", False)
        return NodeType(
            self._schema,
            self._run_async if is_async else self._run,
            is_changed=self._is_changed if states else None,
            validate=getattr(own, "VALIDATE_INPUTS", None),
            check_lazy=self._check_lazy if hasattr(own, "check_lazy_status") else None,
            takes_run=True,
            takes_extra=True,
            declared=self._declared_now,
        )

    # ---- Calls, as the engine makes them ----

    def _run(self, *, run: NodeRun, **values: object) -> NodeResult:
        with calling(run):
            return self._result(self._method(run)(**self._arguments(values, run)), run)

    async def _run_async(self, *, run: NodeRun, **values: object) -> NodeResult:
        with calling(run):
            return self._result(await self._method(run)(**self._arguments(values, run)), run)

    def _is_changed(self, *, run: NodeRun, **values: object) -> object:
        if not hasattr(self._class, "IS_CHANGED"):
            return run.node_id
        function = self._class.IS_CHANGED
        with calling(run):
            return function(**_accepted(function, {**values, **self._hidden(run)}))

    def _check_lazy(self, *, run: NodeRun, **values: object) -> object:
        function = self._instance(run).check_lazy_status
        arguments = _accepted(function, self._arguments(values, run))
        if inspect.iscoroutinefunction(function):
            return _in_call(function, arguments, run)
        with calling(run):
            return function(**arguments)

    # ---- In ----

    def _instance(self, run: NodeRun) -> Any:
        return run.cached("instance", self._class)

    def _method(self, run: NodeRun) -> Callable[..., Any]:
        return getattr(self._instance(run), self._function)

    def _arguments(self, values: Mapping[str, object], run: NodeRun) -> dict[str, object]:
        """The keyword arguments of a call: what is declared, hidden inputs that were given values included,
        and of the rest what the function takes."""
        whole = self._schema.input_is_list
        extra = self._extra({name for name in values if name not in self._declared}, run)
        known = {
            name: [_given(item) for item in cast("list[object]", value)] if whole else _given(value)
            for name, value in values.items()
            if name in self._declared or name in extra
        }
        return {**known, **self._hidden(run)}

    def _extra(self, names: set[str], run: NodeRun) -> set[str]:
        """Undeclared inputs that the function takes: links, and literals that a declaration that contains
        every name (a dictionary with a `__contains__` of its own) lets in."""
        if not names:
            return names
        sections = sections_of(self._class)
        open_ended = [sections.get("required", ()), sections.get("optional", ())]
        taken = _accepted(getattr(self._class, self._function), dict.fromkeys(names))
        links = run.node.links()
        return {n for n in taken if n in links or any(n in section for section in open_ended)}

    def _hidden(self, run: NodeRun) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, kind in self._schema.hidden.items():
            known, value = _hidden_value(kind, run)
            if known:
                found[name] = [value] if self._schema.input_is_list else value
        return found

    # ---- Out ----

    def _result(self, returned: object, run: NodeRun) -> NodeResult:
        """What a function returned: values, a blocker, or a dictionary of ui, result and expand."""
        if not isinstance(returned, dict):
            return NodeResult(self._outputs(returned, expanded=False))
        said = cast("dict[str, Any]", returned)
        expand = said.get("expand")
        outputs = self._outputs(said.get("result"), expanded=expand is not None)
        graph = None if expand is None else _graph(cast("object", expand), self._schema.name)
        return NodeResult(outputs, _shown(said.get("ui") or {}, run), graph)

    def _outputs(self, result: object, *, expanded: bool) -> tuple[object, ...]:
        """One value per output; those that the function left out block what needs them."""
        declared = self._schema.outputs
        if isinstance(result, Blocked):
            return (result,) * len(declared)
        if result is None:
            values: tuple[object, ...] = ()
        elif isinstance(result, tuple | list):
            values = tuple(cast("list[object]", result))
        else:
            raise TypeError(
                f"{self._schema.name} returned a {type(result).__name__}; expected a tuple of its outputs "
                "or a dictionary with the keys ui, result and expand"
            )
        out = [
            self._output(value, output.type, output.is_list, expanded)
            for value, output in zip(values, declared, strict=False)
        ]
        name = self._schema.name
        left_out = (Blocked(f"{name} gave no value for its output {o.name}") for o in declared[len(out) :])
        return (*out, *left_out)

    @staticmethod
    def _output(value: object, kind: str, is_list: bool, expanded: bool) -> object:
        from loraloom.custom_nodes.conditioning import conditioning, from_pack

        if isinstance(value, Blocked):
            return value
        if expanded and is_link(value):
            return _link(value)
        convert = conditioning if kind == "CONDITIONING" else from_pack
        if not is_list:
            return convert(value)
        return [i if isinstance(i, Blocked) else convert(i) for i in cast("list[object]", value)]


def _given(value: object) -> object:
    """A value as a function gets it; a link (of an input with `rawLink`) in the form of the API."""
    from loraloom.custom_nodes.conditioning import to_pack

    return [value.node, value.slot] if isinstance(value, Link) else to_pack(value)


async def _in_call(
    function: Callable[..., Awaitable[object]], arguments: dict[str, object], run: NodeRun
) -> object:
    with calling(run):
        return await function(**arguments)


def _accepted(function: Callable[..., object], values: Mapping[str, object]) -> dict[str, object]:
    """Those values that a function names, or all when it takes any."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(values)
    return {name: value for name, value in values.items() if name in parameters}


def _hidden_value(kind: str, run: NodeRun) -> tuple[bool, object]:
    """Whether a hidden input of that kind is passed at all, and what it is."""
    match kind:
        case "PROMPT":
            return True, run.prompt
        case "EXTRA_PNGINFO":
            return True, dict(run.extra_pnginfo)
        case "UNIQUE_ID":
            return True, run.node_id
        case "DYNPROMPT":
            return True, DynamicPrompt(run)
        case "AUTH_TOKEN_COMFY_ORG" | "API_KEY_COMFY_ORG":
            return True, None
        case _:
            return False, None


def _graph(expand: object, class_type: str) -> Graph:
    """The nodes of an expansion. Their literal values may be anything, also tensors."""
    nodes: dict[str, GraphNode] = {}
    entries = cast("Mapping[str, object]", expand) if isinstance(expand, Mapping) else None
    if entries is None:
        raise WorkflowError(f"{class_type} expanded into a {type(expand).__name__}, expected nodes by id")
    for node_id, entry in entries.items():
        said = cast("Mapping[str, Any]", entry) if isinstance(entry, Mapping) else {}
        if not isinstance(said.get("class_type"), str) or not isinstance(said.get("inputs", {}), Mapping):
            raise WorkflowError(f"{class_type} expanded into a node {node_id} without class_type or inputs")
        inputs: dict[str, Value] = {
            name: _link(value) if is_link(value) else cast("JSON", value)
            for name, value in cast("Mapping[str, object]", said.get("inputs", {})).items()
        }
        nodes[str(node_id)] = GraphNode(str(node_id), said["class_type"], inputs)
    return Graph(nodes)


def _link(value: object) -> Link:
    node_id, slot = cast("tuple[str, float]", value)
    return Link(node_id, int(slot))


def _shown(ui: Mapping[str, object], run: NodeRun) -> dict[str, JSON]:
    """What an editor is shown, as JSON."""
    shown: dict[str, JSON] = {}
    for name, value in ui.items():
        try:
            shown[str(name)] = plain(value)
        except (TypeError, ValueError) as error:
            run.warn(f"what it wanted to show as {name!r} is left out: {error}")
    return shown
