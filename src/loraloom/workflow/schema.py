"""What is known of a node class: its inputs, outputs and how an editor shows it.

The same schema drives the UI→API converter (widget order), validation, `/object_info`, `loraloom nodes`
and the docs. `nodes` derives it from function signatures, `core_classes` reads it from the table of
ComfyUI's classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from loraloom.workflow.graph import JSON

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})

FileLister: TypeAlias = Callable[[str], Sequence[str]]
"""Model folder name (or "input") → the file names it offers."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a node class.

    type: socket type ("MODEL"), widget type ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"), "*" for any,
        or several joined by commas.
    choices: the fixed choices of a COMBO; `folders` names the folders whose files are its choices.
    options: what ComfyUI keeps in the second element: default, min, max, step, round, multiline, …
    """

    name: str
    type: str
    choices: tuple[JSON, ...] = ()
    folders: tuple[str, ...] = ()
    options: Mapping[str, JSON] = field(default_factory=lambda: dict[str, JSON]())
    required: bool = True
    lazy: bool = False

    @property
    def is_widget(self) -> bool:
        """Whether an editor shows a field for it (so that `widgets_values` has a place for it)."""
        if self.options.get("forceInput", False):
            return False
        return self.type in WIDGET_TYPES or "widgetType" in self.options

    @property
    def default(self) -> JSON:
        return self.options.get("default")

    def all_choices(self, files: FileLister) -> list[JSON]:
        found: list[JSON] = [name for folder in self.folders for name in files(folder)]
        return [*found, *self.choices]


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a node class. later: since after v0.3.64, which `/object_info` follows."""

    name: str
    type: str
    is_list: bool = False
    later: bool = False


@dataclass(frozen=True, slots=True)
class NodeSchema:
    """A node class as an editor and a validator see it.

    api_node: None for classes of the first generation, whose `/object_info` entries do not say it.
    alone: workflows with such a node are never run together with others.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    display_name: str = ""
    category: str = ""
    description: str = ""
    output_node: bool = False
    input_is_list: bool = False
    hidden: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    deprecated: bool = False
    experimental: bool = False
    api_node: bool | None = None
    newer: bool = False
    python_module: str = "nodes"
    alone: bool = False

    def input(self, name: str) -> Input | None:
        return next((i for i in self.inputs if i.name == name), None)

    def widgets(self) -> tuple[Input, ...]:
        """The inputs that take a place in `widgets_values`, in that order."""
        return tuple(i for i in self.inputs if i.is_widget)
