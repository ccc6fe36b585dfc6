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
`signature.py` derives the schema.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Protocol, TypeAlias, TypeVar, cast

from loraloom.workflow.graph import JSON, Graph, GraphNode
from loraloom.workflow.schema import NodeSchema

# ---- Markers for `Annotated` ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Socket:
    """A connection of a type that editors match by name: "MODEL", "*" for any, or "INT,FLOAT" for several."""

    type: str


@dataclass(frozen=True, slots=True)
class Number:
    """An `int` (INT) or `float` (FLOAT) field, with its range and how it is stepped and shown."""

    min: float | None = None
    max: float | None = None
    step: float | None = None
    round: float | None = None
    control_after_generate: bool = False
    display: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A STRING field; `dynamic_prompts` lets the editor resolve `{a|b}`. None leaves the option unsaid."""

    multiline: bool | None = None
    dynamic_prompts: bool | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A COMBO with fixed choices, or with those that a function gives when the node is defined."""

    choices: Sequence[JSON] | Callable[[], Sequence[JSON]]


@dataclass(frozen=True, init=False, slots=True)
class Files:
    """A COMBO of the files of some model folders (or "input"), followed by fixed `extra` choices.

    The engine adds the named file's identity to the cache key, so that an overwritten file is read again.
    """

    folders: tuple[str, ...]
    extra: tuple[str, ...]

    def __init__(self, *folders: str, extra: Sequence[str] = ()) -> None:
        object.__setattr__(self, "folders", folders)
        object.__setattr__(self, "extra", tuple(extra))


@dataclass(frozen=True, slots=True)
class Lazy:
    """An input that is only computed when the node's `check_lazy` asks for it."""


@dataclass(frozen=True, slots=True)
class Optional_:
    """An input that may be left out though its type does not say `| None`."""


@dataclass(frozen=True, slots=True)
class Options:
    """Any further option of ComfyUI's input specification: `image_upload`, `forceInput`, `tooltip`, …"""

    values: Mapping[str, JSON]


# ---- What a node receives and returns -------------------------------------------------------------------


class NodeRun(Protocol):
    """The run as one node sees it: taken by a keyword parameter named `run`."""

    @property
    def node_id(self) -> str: ...
    @property
    def node(self) -> GraphNode: ...
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

    def cached(self, key: str, make: Callable[[], object]) -> object:
        """A value kept for this node between runs of the same cache, made when there is none yet."""
        ...


@dataclass(frozen=True, slots=True)
class Blocked:
    """In place of an output: nodes that need it do not run; with a message, they fail with it."""

    message: str | None = None


ExecutionBlocker = Blocked


@dataclass(frozen=True, slots=True)
class NodeResult:
    """Outputs with what the editor shows (`ui`), or with nodes that take this node's place (`expand`).

    outputs: one per output of the class; with `expand` they may be `Link`s to nodes of that graph.
    """

    outputs: tuple[object, ...] = ()
    ui: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    expand: Graph | None = None


@dataclass(frozen=True, slots=True)
class NodeType:
    """A node class as the engine runs it.

    function: called with one keyword argument per input; plain or async.
    is_changed: called with the literal inputs (None for links); its value is part of the cache key, and NaN
        or an exception means "always run".
    validate: called with those literal inputs that it names; True, or a message.
    check_lazy: called with the inputs that are known (None for the rest); names of lazy inputs it needs.
    takes_run, takes_extra: whether the function has a parameter `run`, or takes inputs it does not name.
    """

    schema: NodeSchema
    function: Callable[..., object]
    is_changed: Callable[..., object] | None = None
    validate: Callable[..., object] | None = None
    check_lazy: Callable[..., object] | None = None
    takes_run: bool = False
    takes_extra: bool = False

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
    display_name: str = "",
    description: str = "",
    outputs: Sequence[str] | None = None,
    output_types: Sequence[str] | None = None,
    output_is_list: Sequence[bool] | None = None,
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
) -> Callable[[Function], Function]:
    """Make a node class of a typed function, which stays what it was: callable, testable.

    outputs: names of the outputs, by default their types.
    output_types: instead of those in the return annotation (for a function that returns a NodeResult).
    hidden: what ComfyUI calls hidden inputs, for `/object_info`; the function itself takes `run`.
    v3: `/object_info` prints the class in ComfyUI's newer manner (["COMBO", {"options": …}]).
    Raises TypeError when a parameter's annotation says no input type.
    """
    from loraloom.engine import signature

    def register(function: Function) -> Function:
        said = signature.read(function, input_is_list, output_types, output_is_list)
        schema = NodeSchema(
            name=name,
            inputs=said.inputs,
            outputs=signature.named(said.outputs, outputs, name),
            display_name=display_name,
            category=category,
            description=description or (function.__doc__ or "").strip().split("\n")[0],
            output_node=output_node,
            input_is_list=input_is_list,
            hidden=dict(hidden or {}),
            deprecated=deprecated,
            experimental=experimental,
            python_module=python_module,
            v3=v3,
        )
        found = NodeType(schema, function, is_changed, validate, check_lazy, said.takes_run, said.takes_extra)
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
