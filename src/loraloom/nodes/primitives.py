"""Nodes that hold, choose, compute and show plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Annotated, cast

from loraloom.engine.node import Choice, Lazy, NodeResult, Number, Optional_, Options, Socket, Text, node
from loraloom.errors import InputError
from loraloom.nodes.expressions import Value, evaluate

PRIMITIVE = "comfy_extras.nodes_primitive"
LARGEST = 0x7FFFFFFFFFFFFFFF
Any = Annotated[object, Socket("*")]

RATIOS = {
    "1:1 (Square)": (1, 1),
    "3:2 (Photo)": (3, 2),
    "4:3 (Standard)": (4, 3),
    "16:9 (Widescreen)": (16, 9),
    "21:9 (Ultrawide)": (21, 9),
    "2:3 (Portrait Photo)": (2, 3),
    "3:4 (Portrait Standard)": (3, 4),
    "9:16 (Portrait Widescreen)": (9, 16),
}


@node("PrimitiveInt", category="utils/primitive", display_name="Int", v3=True, python_module=PRIMITIVE)
def integer(
    value: Annotated[int, Number(min=-LARGEST, max=LARGEST, control_after_generate=True)],
) -> int:
    """A whole number."""
    return value


@node("PrimitiveFloat", category="utils/primitive", display_name="Float", v3=True, python_module=PRIMITIVE)
def number(value: Annotated[float, Number(min=-LARGEST, max=LARGEST)]) -> float:
    """A number."""
    return value


@node(
    "PrimitiveBoolean", category="utils/primitive", display_name="Boolean", v3=True, python_module=PRIMITIVE
)
def boolean(value: bool) -> bool:
    """True or false."""
    return value


@node("PrimitiveString", category="utils/primitive", display_name="String", v3=True, python_module=PRIMITIVE)
def string(value: Annotated[str, Text(multiline=False)]) -> str:
    """A line of text."""
    return value


@node(
    "PrimitiveStringMultiline",
    category="utils/primitive",
    display_name="String (Multiline)",
    v3=True,
    python_module=PRIMITIVE,
)
def text(value: Annotated[str, Text(multiline=True)]) -> str:
    """A text of several lines."""
    return value


@node(
    "PreviewAny",
    category="utils",
    display_name="Preview Any",
    output_types=("STRING",),
    later_outputs=True,
    output_node=True,
    python_module="comfy_extras.nodes_preview_any",
)
def preview_any(source: Any) -> NodeResult:
    """Show any value as text, and hand the text on."""
    shown = _shown(source)
    return NodeResult((shown,), ui={"text": [shown]})


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def _wanted_branch(
    switch: bool, on_false: object | EllipsisType = ..., on_true: object | EllipsisType = ...
) -> Sequence[str]:
    """The branch that the switch chooses, as long as it has not been computed."""
    chosen = on_true if switch else on_false
    return [] if chosen is not None else ["on_true" if switch else "on_false"]


@node(
    "ComfySwitchNode",
    category="logic",
    display_name="Switch",
    outputs=("output",),
    check_lazy=_wanted_branch,
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_logic",
)
def switch(
    switch: bool,
    on_false: Annotated[object, Socket("*"), Lazy(), Optional_()] = None,
    on_true: Annotated[object, Socket("*"), Lazy(), Optional_()] = None,
) -> Any:
    """Pass on one of two values; what leads to the other is not computed."""
    return on_true if switch else on_false


@node(
    "CustomCombo",
    category="utils",
    display_name="Custom Combo",
    outputs=("STRING", "INDEX"),
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_logic",
)
def custom_combo(
    choice: Annotated[str, Choice(())], index: Annotated[int, Number(min=0), Optional_()] = 0
) -> tuple[str, int]:
    """One of several texts that the editor's user wrote, and its place among them."""
    return choice, index


@node(
    "ResolutionSelector",
    category="utils",
    display_name="Resolution Selector",
    outputs=("width", "height"),
    v3=True,
    python_module="comfy_extras.nodes_resolution",
)
def select_resolution(
    aspect_ratio: Annotated[str, Choice(tuple(RATIOS))] = "1:1 (Square)",
    megapixels: Annotated[float, Number(min=0.1, max=16.0, step=0.1)] = 1.0,
    multiple: Annotated[int, Number(min=1, max=256, step=1), Optional_()] = 8,
) -> tuple[int, int]:
    """Width and height from proportions and a number of pixels; a megapixel has 1024 × 1024."""
    across, down = RATIOS[aspect_ratio]
    scale = math.sqrt(megapixels * 1024 * 1024 / (across * down))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in (across, down))
    return width, height


@node(
    "ComfyMathExpression",
    category="utils",
    display_name="Math Expression",
    outputs=("FLOAT", "INT", "BOOL"),
    v3=True,
    python_module="comfy_extras.nodes_math",
)
def math_expression(
    expression: Annotated[str, Text(multiline=True), Options({"default": "a + b"})],
    **values: Annotated[object, Socket("FLOAT,INT,BOOLEAN")],
) -> tuple[float, int, bool]:
    """Compute an expression such as `max(a, b) / 2` of the connected numbers a, b, c …

    All of them together are the list `values`."""
    given = cast("dict[str, Value | None]", values)
    named = {name.removeprefix("values."): value for name, value in given.items() if value is not None}
    result = evaluate(expression, {**named, "values": list(named.values())})
    try:
        whole = int(result)
        return float(result), whole, bool(result)
    except (OverflowError, ValueError) as error:
        raise InputError(f"the expression {expression!r} gives {result}: not a finite number") from error
