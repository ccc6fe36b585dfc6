"""Reads a node's inputs and outputs off its function's signature."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Union, cast, get_args, get_origin

from loraloom.engine import markers as kinds
from loraloom.engine.result import Blocked, NodeResult
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import Input, Output

_PLAIN: Mapping[object, str] = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function says about its node class; see `NodeType` for the last three."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    takes_run: bool
    takes_extra: bool
    single: bool


def read(
    function: Callable[..., object],
    input_is_list: bool,
    output_types: Sequence[str] | None,
    output_is_list: Sequence[bool] | None,
) -> Signature:
    """The inputs and outputs of a node function; TypeError names the parameter that says no type."""
    where = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise TypeError(
            f"{where}: an annotation cannot be read ({error}); quote tensor types inside Annotated[…] and "
            "import the rest at run time"
        ) from error
    parameters = signature.parameters.values()
    inputs = tuple(
        _input(where, p, input_is_list)
        for p in parameters
        if p.name != "run" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    )
    single = False
    if output_types is None:
        output_types, single = _output_types(where, signature.return_annotation)
    lists = tuple(output_is_list) if output_is_list is not None else (False,) * len(output_types)
    if len(lists) != len(output_types):
        raise TypeError(f"{where}: {len(output_types)} outputs, but output_is_list has {len(lists)} entries")
    outputs = tuple(Output(t, t, is_list) for t, is_list in zip(output_types, lists, strict=True))
    return Signature(
        inputs,
        outputs,
        takes_run="run" in signature.parameters,
        takes_extra=any(p.kind is p.VAR_KEYWORD for p in parameters),
        single=single,
    )


def named(outputs: tuple[Output, ...], names: Sequence[str] | None, node: str) -> tuple[Output, ...]:
    """The outputs under the names that the decorator gives them."""
    if names is None:
        return outputs
    if len(names) != len(outputs):
        raise TypeError(f"{node}: {len(outputs)} outputs are returned, but {len(names)} are named")
    return tuple(replace(output, name=name) for output, name in zip(outputs, names, strict=True))


def second_generation(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """The inputs as ComfyUI's second generation of nodes says them: every COMBO tells `multiselect`."""
    return tuple(
        replace(i, options={"multiselect": False, **i.options}) if i.type == "COMBO" else i for i in inputs
    )


def _alternatives(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _flat(annotation: object) -> tuple[object, list[object], bool]:
    """The bare type, the markers of every level of Annotated, and whether None is allowed."""
    markers: list[object] = []
    optional = False
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *found = get_args(annotation)
            markers.extend(found)
            continue
        alternatives = _alternatives(annotation)
        rest = tuple(a for a in alternatives if a is not type(None))
        optional = optional or len(rest) < len(alternatives)
        if len(rest) != 1 or len(alternatives) == 1:
            return (rest if len(rest) > 1 else annotation), markers, optional
        annotation = rest[0]


def _item(annotation: object) -> object:
    """The T of list[T] or Sequence[T], also inside Optional."""
    for alternative in _alternatives(annotation):
        if get_origin(alternative) in (list, Sequence):
            return get_args(alternative)[0]
    return annotation


def _input(where: str, parameter: inspect.Parameter, input_is_list: bool) -> Input:
    bare, markers, optional = _flat(parameter.annotation)
    if input_is_list:
        bare, inner, inner_optional = _flat(_item(bare))
        markers, optional = [*markers, *inner], optional or inner_optional
    options: dict[str, JSON] = {}
    if parameter.default is not parameter.empty and parameter.default is not None:
        options["default"] = cast("JSON", parameter.default)
    found = Input(parameter.name, _PLAIN.get(bare, "") if isinstance(bare, type) else "")
    for marker in markers:
        found = _marked(found, marker, options)
        optional = optional or isinstance(marker, kinds.Optional_)
    if not found.type:
        raise TypeError(
            f"{where}: parameter {parameter.name!r} needs a Socket, a Choice, Files or a plain type"
        )
    return replace(found, options=options, required=not optional)


def _marked(found: Input, marker: object, options: dict[str, JSON]) -> Input:
    match marker:
        case kinds.Socket(type=name):
            return replace(found, type=name)
        case kinds.Choice(choices=choices):
            values = choices() if callable(choices) else choices
            return replace(found, type="COMBO", choices=tuple(values))
        case kinds.Files(folders=folders, extra=extra):
            return replace(found, type="COMBO", folders=folders, choices=tuple(extra))
        case kinds.Lazy():
            return replace(found, lazy=True)
        case kinds.Number():
            said = {"min": marker.min, "max": marker.max, "step": marker.step, "round": marker.round}
            options.update({name: value for name, value in said.items() if value is not None})
            if marker.control_after_generate:
                options["control_after_generate"] = True
            if marker.display:
                options["display"] = marker.display
        case kinds.Text():
            said = {"multiline": marker.multiline, "dynamicPrompts": marker.dynamic_prompts}
            options.update({name: value for name, value in said.items() if value is not None})
        case kinds.Options(values=values):
            options.update(values)
        case _:
            pass
    return found


def _output_types(where: str, annotation: object) -> tuple[tuple[str, ...], bool]:
    """The types that a return annotation says, and whether it is one type rather than a tuple of them."""
    results = (NodeResult, Blocked, type(None), None)
    kept = [a for a in _alternatives(annotation) if not any(a is r for r in results)]
    if annotation is inspect.Signature.empty or len(kept) > 1:
        raise TypeError(f"{where}: the return annotation must be a socket type, a tuple of them, or None")
    if not kept:
        return (), False
    if get_origin(kept[0]) is tuple:
        return tuple(_output_type(where, a) for a in get_args(kept[0]) if a != ()), False
    return (_output_type(where, kept[0]),), True


def _output_type(where: str, annotation: object) -> str:
    kept = [a for a in _alternatives(annotation) if not (a is Blocked or a is type(None))]
    bare, markers, _ = _flat(kept[0])
    socket = next((m.type for m in markers if isinstance(m, kinds.Socket)), None)
    if socket is None and any(isinstance(m, kinds.Choice | kinds.Files) for m in markers):
        socket = "COMBO"
    if socket is None and isinstance(bare, type):
        socket = _PLAIN.get(bare)
    if socket is None:
        inner = _item(bare)
        if inner is not bare:
            return _output_type(where, inner)
        raise TypeError(f"{where}: an output needs Annotated[…, Socket(…)] or a plain type, not {annotation}")
    return socket
