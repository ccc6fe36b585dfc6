"""One TOML file → frozen dataclasses, with every key checked: an unknown or mistyped one is an error."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from loraloom.errors import InputError

T = TypeVar("T")

_EXPECTED = {
    "dataclass_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "string_type": "a value of type str",
    "int_type": "a value of type int",
    "float_type": "a value of type float",
    "bool_type": "a value of type bool",
    "is_instance_of": "a value of type path",
    "path_type": "a value of type path",
}


def read_toml(path: Path, kind: type[T]) -> T:
    """The dataclass `kind` as a file states it; paths in it are relative to the file's folder.

    Raises InputError naming file, keys, what was found and what was expected."""
    with stated_in(path) as stated:
        return parse(stated, kind, path.parent)


@contextmanager
def stated_in(path: Path) -> Generator[dict[str, object]]:
    """What a TOML file says, unchecked; it is named by an InputError that is raised meanwhile."""
    try:
        stated = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    try:
        yield stated
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse(stated: Mapping[str, object], kind: type[T], folder: Path) -> T:
    """A dataclass from parsed TOML. folder: what relative paths are relative to. Raises InputError."""
    try:
        return TypeAdapter(kind).validate_python(dict(stated), context={"folder": folder})
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A key that is written wrongly is often the one that is missing: it comes first.
        found.sort(key=lambda entry: entry["type"] != "unexpected_keyword_argument")
        raise InputError("\n  ".join(_mistake(entry, kind) for entry in found)) from error


def toml_text(stated: Mapping[str, Any]) -> str:
    """A TOML file that says this: tables, lists, texts, numbers and switches; what is None is left out."""
    return "".join(f"{_key(key)} = {_written(value)}\n" for key, value in stated.items() if value is not None)


def _written(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case dict():
            entries = cast("dict[str, object]", value).items()
            return f"{{{', '.join(f'{_key(k)} = {_written(v)}' for k, v in entries if v is not None)}}}"
        case list() | tuple():
            return f"[{', '.join(map(_written, cast('list[object]', value)))}]"
        case _:
            # JSON's escapes are among TOML's.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _written(name)


def _mistake(entry: ErrorDetails, kind: type) -> str:
    place, value = _place(entry["loc"]), entry["input"]
    context: Mapping[str, Any] = entry.get("ctx", {})
    match entry["type"]:
        case "missing":
            return f"{place} is missing"
        case "unexpected_keyword_argument":
            known = _settings_at(kind, entry["loc"][:-1])
            near = difflib.get_close_matches(str(entry["loc"][-1]), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            return f"{place} is not a setting; {hint}"
        case "literal_error":
            return f"{place} is {value!r}; choose one of {str(context['expected']).replace(chr(39), '')}"
        case "greater_than_equal":
            return f"{place} is {value!r}; it must be at least {context['ge']}"
        case "less_than_equal":
            return f"{place} is {value!r}; it must be at most {context['le']}"
        case other if other in _EXPECTED:
            return f"{place} is {value!r}; expected {_EXPECTED[other]}"
        case _:
            return f"{place} is {value!r}: {entry['msg']}"


def _place(location: Sequence[int | str]) -> str:
    """Keys joined by dots, with the numbers of list items: `data[0].folder`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _settings_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys of the table at a place."""
    for part in location:
        if isinstance(part, str):
            hint = get_type_hints(kind)[part]
            kind = next(found for found in (hint, *get_args(hint)) if is_dataclass(found))
    return [entry.name for entry in fields(kind)]
