"""What a node is: a typed function, and what its signature says to editors and to the engine.

    @node("LoraLoaderModelOnly", category="loaders", display_name="LoraLoaderModelOnly")
    def lora_loader_model_only(
        *,
        model: Model,                                   # Model = Annotated["DiffusionModel", Socket("MODEL")]
        lora_name: Annotated[str, Files("loras")],
        strength_model: Annotated[float, Number(min=-100.0, max=100.0, step=0.01)] = 1.0,
        run: NodeRun,
    ) -> Model: ...

Parameters are passed by keyword, so they may stand in the editor's order whatever their defaults.
The markers for `Annotated` are in `markers.py`; `signature.py` derives the schema.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Protocol, TypeAlias, TypeVar, cast

from loraloom.engine import signature
from loraloom.engine.markers import Choice, Files, Lazy, Number, Optional_, Options, Socket, Text
from loraloom.engine.result import Blocked, ExecutionBlocker, NodeResult
from loraloom.workflow.graph import JSON, GraphNode
from loraloom.workflow.schema import NodeSchema

__all__ = [
    "Blocked",
    "Choice",
    "ExecutionBlocker",
    "Files",
    "Lazy",
    "NodeResult",
    "NodeRun",
    "NodeType",
    "Number",
    "Optional_",
    "Options",
    "Socket",
    "Text",
    "collect",
    "node",
    "node_types",
]

Computed = TypeVar("Computed")


class NodeRun(Protocol):
    """The run as one node sees it: taken by a keyword parameter named `run`."""

    @property
    def node_id(self) -> str: ...
    @property
    def node(self) -> GraphNode: ...
    @property
    def nodes(self) -> Mapping[str, GraphNode]:
        """Every node of the run as it is now, with those that stand in the place of others."""
        ...

    @property
    def parents(self) -> Mapping[str, str]:
        """Node that came by an expansion → the node whose place it takes."""
        ...

    @property
    def prompt(self) -> dict[str, JSON]:
        """API JSON of the whole graph, as it is stored in a picture."""
        ...

    @property
    def extra_pnginfo(self) -> Mapping[str, JSON]:
        """What else goes into a picture: the editor's "workflow", when known."""
        ...

    @property
    def services(self) -> object:
        """What the host gives to its nodes (folders, memory, …); a node casts it to what it needs."""
        ...

    def progress(self, value: float, total: float, preview: object | None = None) -> None:
        """Say how far the node is. Raises Cancelled when the run was stopped."""
        ...

    def check_cancelled(self) -> None:
        """Raise Cancelled when the run was stopped."""
        ...

    def warn(self, message: str) -> None:
        """Tell the user about something that does not stop the run."""
        ...

    def note(self, kind: str, payload: JSON) -> None:
        """Put a fact into the run's result, such as a LoRA receipt."""
        ...

    def note_later(self, kind: str, computed: Future[Computed], payload: Callable[[Computed], JSON]) -> None:
        """Put a fact into the run's result that another thread is computing: `payload` of what comes of it.
        The run waits for it where another node asks for `notes`, and before it ends; nowhere else."""
        ...

    def notes(self, kind: str) -> list[JSON]:
        """What this node and those it depends on have noted of a kind, also where their results were kept."""
        ...

    def cached(self, key: str, make: Callable[[], object]) -> object:
        """A value kept for this node between runs of the same cache, made when there is none yet."""
        ...


@dataclass(frozen=True, slots=True)
class NodeType:
    """A node class as the engine runs it.

    function: called with one keyword argument per input; plain or async.
    is_changed: called with the literal inputs (None for links); its value is part of the cache key, and NaN
        or an exception means "always run".
    validate: called with those inputs that it names, None for links; True, or a message.
    check_lazy: called with the inputs that are known (None for the rest); names of lazy inputs it needs.
    takes_run, takes_extra: whether the function has a parameter `run`, or takes inputs it does not name.
    declared: what the class declares now, where that may change, such as choices that are files.
    single: whether it returns the value of its one output as it is: a tuple is that value, not the outputs.
    """

    schema: NodeSchema
    function: Callable[..., object]
    is_changed: Callable[..., object] | None = None
    validate: Callable[..., object] | None = None
    check_lazy: Callable[..., object] | None = None
    takes_run: bool = False
    takes_extra: bool = False
    single: bool = False
    declared: Callable[[], NodeSchema] | None = None

    @property
    def name(self) -> str:
        return self.schema.name


Function = TypeVar("Function", bound=Callable[..., object])
Check: TypeAlias = "Callable[..., object] | None"

_NODE_TYPES = "__node_types__"


def node(
    name: str,
    *,
    category: str,
    display_name: str | None = None,
    description: str = "",
    outputs: Sequence[str] | None = None,
    output_types: Sequence[str] | None = None,
    output_is_list: Sequence[bool] | None = None,
    later_outputs: bool = False,
    output_node: bool = False,
    input_is_list: bool = False,
    hidden: Mapping[str, str] | None = None,
    is_changed: Check = None,
    validate: Check = None,
    check_lazy: Check = None,
    deprecated: bool = False,
    experimental: bool = False,
    v3: bool = False,
    python_module: str = "nodes",
    alone: bool = False,
) -> Callable[[Function], Function]:
    """Make a node class of a typed function, which stays what it was: callable, testable.

    outputs: names of the outputs, by default their types.
    output_types: instead of those in the return annotation (for a function that returns a NodeResult).
    later_outputs: whether ComfyUI's class got its outputs after v0.3.64 (see `schema.Output`).
    hidden: what ComfyUI calls hidden inputs, for `/object_info`; the function itself takes `run`.
    alone: see `NodeSchema`.
    v3: `/object_info` prints the class in the manner of ComfyUI's second generation of nodes.
    Raises TypeError when a parameter's annotation says no input type.
    """

    def register(function: Function) -> Function:
        said = signature.read(function, input_is_list, output_types, output_is_list)
        schema = NodeSchema(
            name=name,
            inputs=signature.second_generation(said.inputs) if v3 else said.inputs,
            outputs=tuple(
                replace(output, later=later_outputs)
                for output in signature.named(said.outputs, outputs, name)
            ),
            display_name=display_name or "",
            category=category,
            description=description or (function.__doc__ or "").strip().split("\n")[0],
            output_node=output_node,
            input_is_list=input_is_list,
            hidden=dict(hidden or {}),
            deprecated=deprecated,
            experimental=experimental,
            python_module=python_module,
            alone=alone,
            api_node=False if v3 else None,
        )
        found = NodeType(
            schema,
            function,
            is_changed,
            validate,
            check_lazy,
            takes_run=said.takes_run,
            takes_extra=said.takes_extra,
            single=said.single,
        )
        setattr(function, _NODE_TYPES, (*node_types(function), found))
        return function

    return register


def node_types(function: object) -> tuple[NodeType, ...]:
    """The node classes made of a function: usually one, several when it has several names."""
    return cast("tuple[NodeType, ...]", getattr(function, _NODE_TYPES, ()))


def collect(package: ModuleType | str) -> dict[str, NodeType]:
    """Every node class of a package, by class name, in the order of its modules.

    Imports all modules below it. Raises ValueError when two functions claim one class name.
    """
    root = importlib.import_module(package) if isinstance(package, str) else package
    below = pkgutil.walk_packages(getattr(root, "__path__", ()), root.__name__ + ".")
    modules = [root, *(importlib.import_module(found.name) for found in below)]
    nodes: dict[str, NodeType] = {}
    for module in modules:
        own = [v for v in vars(module).values() if getattr(v, "__module__", None) == module.__name__]
        for node_type in (t for value in own for t in node_types(value)):
            other = nodes.setdefault(node_type.name, node_type)
            if other is not node_type:
                raise ValueError(
                    f"two nodes are called {node_type.name!r}: in {other.function.__module__} "
                    f"and in {module.__name__}"
                )
    return nodes
