"""Which value belongs to which widget of a node.

An editor saves the values of a node's widgets as a bare list. Their names come from the class (the table or
a node's schema), from the names that newer editors save beside them, or, for classes that nobody knows,
from the sockets that stand for widgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import Input, NodeSchema
from loraloom.workflow.ui_document import Slot, UiNode

CONTROL = "control_after_generate"
CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
_SEEDS = ("seed", "noise_seed")
_UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "file_upload", "audio_upload")
# Widgets that the editor adds to a class by itself and sends with their value.
_ADDED: Mapping[str, Mapping[str, JSON]] = {"SaveGLB": {"image": ""}}
# Values that an editor keeps for itself; they are never inputs.
_EDITOR_ONLY = frozenset({CONTROL, "control_filter_list", "upload", "audioUI", "videopreview"})


@dataclass(frozen=True, slots=True)
class _Place:
    """One place in the list of values: an input's, or one that the editor keeps for itself."""

    input: Input | None
    sure: bool = True
    control: bool = False


def has_control(entry: Input) -> bool:
    """Whether an editor puts a seed control (fixed, increment, …) behind this widget."""
    said = entry.options.get(CONTROL)
    if said is not None:
        return bool(said)
    return entry.type == "INT" and entry.name in _SEEDS


def widget_values(node: UiNode, schema: NodeSchema | None) -> dict[str, JSON]:
    """The value of every widget of a node by input name, in the class's order.

    Widgets that the node has no value for (it was saved before they existed) get their default.
    """
    if schema is None:
        return _unknown_class(node)
    values = saved_values(node, schema)
    if schema.newer:
        return values
    for entry in schema.widgets():
        if entry.name not in values:
            default = default_value(entry)
            if default is not None:
                values[entry.name] = default
    ordered = {i.name: values[i.name] for i in schema.widgets() if i.name in values}
    return {**ordered, **_ADDED.get(schema.name, {})}


def saved_values(node: UiNode, schema: NodeSchema) -> dict[str, JSON]:
    """The values that the file holds for a node's widgets, by input name."""
    named = _named(node)
    if not node.values and node.named_values is not None:
        return {i.name: named[i.name] for i in schema.widgets() if i.name in named}
    if schema.newer:
        return named or _with_variants(node.values, schema)
    return _positional(node.values, schema)


def unknown_names(node: UiNode, schema: NodeSchema) -> tuple[str, ...]:
    """The names in a node's saved values that its class does not have (where values were saved by name)."""
    if node.values or schema.newer:
        return ()
    return tuple(name for name in _named(node) if schema.input(name) is None)


def takes_upload(schema: NodeSchema) -> bool:
    """Whether an editor puts an upload button among the widgets, which has a place of its own."""
    return any(entry.options.get(key) for entry in schema.inputs for key in _UPLOADS)


def default_value(entry: Input) -> JSON:
    """What a new widget shows; None when that depends on which files exist."""
    if "default" in entry.options:
        return entry.default
    if entry.type == "COMBO":
        return entry.choices[0] if entry.choices and not entry.folders else None
    if entry.type == "BOOLEAN":
        return False
    return {"INT": 0, "FLOAT": 0, "STRING": ""}.get(entry.type)


def _with_variants(values: tuple[JSON, ...], schema: NodeSchema) -> dict[str, JSON]:
    """The values of a class known from workflows: a choice may bring further widgets behind it."""
    out: dict[str, JSON] = {}
    rest = list(reversed(values))
    for entry in schema.widgets():
        if not rest:
            break
        value = out[entry.name] = rest.pop()
        if has_control(entry) and rest and rest[-1] in CONTROL_VALUES:
            rest.pop()
        variants = entry.options.get("variants")
        names = variants.get(value) if isinstance(variants, dict) and isinstance(value, str) else None
        for name in names if isinstance(names, list) else ():
            if rest:
                out[f"{entry.name}.{name}"] = rest.pop()
    return out


def _named(node: UiNode) -> dict[str, JSON]:
    found: Mapping[str, JSON] = node.named_values or {}
    return {name: value for name, value in found.items() if name not in _EDITOR_ONLY}


def _places(schema: NodeSchema) -> list[_Place]:
    """The places of a node's value list: widgets, and behind some of them the editor's own."""
    out: list[_Place] = []
    upload = False
    for position, entry in enumerate(schema.inputs):
        if upload and not entry.required and (position == 0 or schema.inputs[position - 1].required):
            out.append(_Place(None, sure=False))
            upload = False
        if not entry.is_widget:
            continue
        out.append(_Place(entry))
        if has_control(entry):
            out.append(_Place(None, control=True))
        upload = upload or any(entry.options.get(key) for key in _UPLOADS)
    return out


def _positional(values: tuple[JSON, ...], schema: NodeSchema) -> dict[str, JSON]:
    places = _places(schema)
    if len(values) < sum(place.sure for place in places):
        return _without_missing_controls(values, places)
    if len(values) <= sum(place.sure for place in places):
        places = [place for place in places if place.sure]
    forced = [
        i for i in schema.inputs if i.options.get("forceInput") and i.type in ("INT", "FLOAT", "STRING")
    ]
    if forced and len(values) == len(places) + len(forced):
        places = _with_forced(schema)
    return {
        place.input.name: value
        for place, value in zip(places, values, strict=False)
        if place.input is not None and place.input.is_widget
    }


def _with_forced(schema: NodeSchema) -> list[_Place]:
    """The places of an older editor, which kept a value for inputs that are sockets today."""
    out: list[_Place] = []
    for entry in schema.inputs:
        if entry.is_widget or entry.options.get("forceInput"):
            out.append(_Place(entry))
            if has_control(entry):
                out.append(_Place(None, control=True))
    return out


def _without_missing_controls(values: tuple[JSON, ...], places: list[_Place]) -> dict[str, JSON]:
    """The values of a list that is too short: a seed control is skipped where there is none."""
    out: dict[str, JSON] = {}
    position = 0
    for place in places:
        if position >= len(values):
            break
        value = values[position]
        if place.input is None:
            if place.control and (value in CONTROL_VALUES or isinstance(value, bool)):
                position += 1
            continue
        out[place.input.name] = value
        position += 1
    return out


def _unknown_class(node: UiNode) -> dict[str, JSON]:
    named = _named(node)
    if named:
        return named
    sockets = [slot for slot in node.inputs if slot.widget]
    values = _strip_controls(node.values, sockets)
    if len(values) < len(sockets):
        return {}
    # More values than names: the rest belongs to widgets that this file does not name.
    return {str(slot.widget): value for slot, value in zip(sockets, values, strict=False)}


def _strip_controls(values: tuple[JSON, ...], sockets: list[Slot]) -> list[JSON]:
    """The values without those of seed controls, which follow a whole number."""
    if len(values) == len(sockets):
        return list(values)
    out: list[JSON] = []
    for value in values:
        previous = out[-1] if out else None
        if value in CONTROL_VALUES and isinstance(previous, int):
            continue
        out.append(value)
    return out
