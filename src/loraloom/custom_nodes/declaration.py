"""What a pack's class declares → NodeSchema.

Declarations are written by hand in many ways; what `/object_info` and ComfyUI itself make of them counts.
A type that compares equal to everything is the wildcard "*", whatever its text.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, cast

from loraloom.custom_nodes.file_list import FileList
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import Input, NodeSchema, Output

_WILDCARD = "*"
_NO_TYPE = "no socket is of this type"
# Options that say that a COMBO is of the second generation, which spells its choices in them.
_SECOND_GENERATION = ("multiselect", "remote")


def read_schema(name: str, cls: type, display_name: str, python_module: str) -> NodeSchema:
    """The schema of a class. Raises what the class's own code raises, and TypeError or AttributeError when
    something that a node class must have is missing or of another kind."""
    said = cast("Any", cls)
    sections = sections_of(cls)
    declared = [
        *_inputs(sections.get("required"), required=True),
        *_inputs(sections.get("optional"), required=False),
    ]
    hidden = cast("Mapping[str, object]", sections.get("hidden") or {})
    if not isinstance(said.FUNCTION, str) or not callable(getattr(said, said.FUNCTION, None)):
        raise TypeError(f"FUNCTION is {said.FUNCTION!r}, expected the name of a method of {cls.__name__}")
    return NodeSchema(
        name=name,
        inputs=tuple(declared),
        outputs=_outputs(said),
        display_name=display_name,
        category=str(getattr(said, "CATEGORY", "")),
        description=inspect.cleandoc(str(getattr(said, "DESCRIPTION", ""))),
        output_node=getattr(said, "OUTPUT_NODE", False) is True,
        input_is_list=bool(getattr(said, "INPUT_IS_LIST", False)),
        hidden={key: socket_type(_first(kind)) for key, kind in hidden.items()},
        deprecated=bool(getattr(said, "DEPRECATED", False)),
        experimental=bool(getattr(said, "EXPERIMENTAL", False)),
        python_module=python_module,
    )


def sections_of(cls: type) -> Mapping[str, Any]:
    """What INPUT_TYPES returns: required, optional, hidden."""
    found: object = cast("Any", cls).INPUT_TYPES()
    if not isinstance(found, Mapping):
        raise TypeError(f"INPUT_TYPES returned a {type(found).__name__}, expected a dictionary")
    return cast("Mapping[str, Any]", found)


def socket_type(kind: object) -> str:
    """A socket type as its text; "*" for one that is equal to any other."""
    if isinstance(kind, list | tuple):
        return "COMBO"
    if not isinstance(kind, str):
        raise TypeError(f"a socket type is a {type(kind).__name__}, expected a text or a list of choices")
    if not kind != _NO_TYPE:  # noqa: SIM202 - such classes overwrite __ne__, often it alone
        return _WILDCARD
    return str(kind.value) if isinstance(kind, Enum) else str.__str__(kind)


def plain(value: object) -> JSON:
    """A value as JSON: tuples as lists, numbers of other libraries as numbers. Raises TypeError if it is
    none."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in cast("Iterable[object]", value)]
    single = getattr(value, "item", None)
    if callable(single) and getattr(value, "size", 0) == 1:
        return plain(single())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _inputs(section: object, *, required: bool) -> Iterable[Input]:
    for name, spec in cast("Mapping[str, object]", section or {}).items():
        yield _input(name, spec, required)


def _input(name: str, spec: object, required: bool) -> Input:
    # ("INT") without its comma is a text.
    parts = cast("tuple[object, ...]", spec) if isinstance(spec, list | tuple) else (spec,)
    kind = parts[0]
    options: dict[str, JSON] = {}
    given = cast("Mapping[str, object]", parts[1]) if len(parts) > 1 and isinstance(parts[1], Mapping) else {}
    for key, value in given.items():
        try:
            options[str(key)] = plain(value)
        except (TypeError, ValueError):
            continue  # a function or the like, which no editor could be told anyway
    folders: tuple[str, ...] = ()
    choices: object = ()
    if isinstance(kind, list | tuple):
        choices = kind
        if isinstance(kind, FileList):
            folders, choices = kind.folders, kind.fixed
    elif socket_type(kind) == "COMBO":
        choices = options.pop("options", [])
        if not any(key in options for key in _SECOND_GENERATION):
            options["options"] = []
    return Input(
        name=name,
        type=socket_type(kind),
        choices=tuple(cast("list[JSON]", plain(choices))),
        folders=folders,
        options=options,
        required=required,
        lazy=bool(options.get("lazy", False)),
    )


def _outputs(said: Any) -> tuple[Output, ...]:
    kinds = _sequence(getattr(said, "RETURN_TYPES", ()))
    names = _sequence(getattr(said, "RETURN_NAMES", ()))
    lists = _sequence(getattr(said, "OUTPUT_IS_LIST", ()))
    out: list[Output] = []
    for index, kind in enumerate(kinds):
        text = socket_type(kind)
        name = str(names[index]) if index < len(names) else text
        out.append(Output(name, text, bool(lists[index]) if index < len(lists) else False))
    return tuple(out)


def _sequence(value: object) -> list[object]:
    if isinstance(value, str):
        return [value]
    # Iterated, not indexed: some packs return a tuple whose items never end.
    return list(cast("Iterable[object]", value or ()))


def _first(kind: object) -> object:
    return cast("list[object]", kind)[0] if isinstance(kind, list | tuple) and kind else kind
