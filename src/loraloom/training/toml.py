"""One TOML file → frozen dataclasses, with every key checked: an unknown or mistyped one is an error."""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from loraloom.errors import InputError

T = TypeVar("T")


def read_toml(path: Path, kind: type[T]) -> T:
    """The dataclass `kind` as a file states it; paths in it are relative to the file's folder.

    Raises InputError naming file, key, what was found and what was expected."""
    try:
        stated = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    try:
        return parse(stated, kind, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse(stated: Mapping[str, object], kind: type[T], folder: Path, place: str = "") -> T:
    """A dataclass from parsed TOML. folder: what relative paths are relative to."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(cast(Any, kind))}
    for key in stated:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{place}{key} is not a setting{hint}")
    values: dict[str, object] = {}
    for name, entry in known.items():
        if name in stated:
            values[name] = _value(stated[name], hints[name], folder, place + name)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f"{place}{name} is missing")
    return kind(**values)


def _value(stated: object, kind: Any, folder: Path, place: str) -> object:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return parse(_table(stated, place), cast("type[object]", kind), folder, place + ".")
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return _value(stated, inner, folder, place)
    if origin is Literal:
        if stated not in arguments:
            raise InputError(f"{place} is {stated!r}; choose one of {', '.join(map(str, arguments))}")
        return stated
    if origin is tuple:
        if not isinstance(stated, list):
            raise InputError(f"{place} is {stated!r}; expected a list")
        items = cast("list[object]", stated)
        return tuple(_value(item, arguments[0], folder, f"{place}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        return {
            key: _value(item, str, folder, f"{place}.{key}") for key, item in _table(stated, place).items()
        }
    return _scalar(stated, kind, folder, place)


def _table(stated: object, place: str) -> Mapping[str, object]:
    if not isinstance(stated, dict):
        raise InputError(f"{place} is {stated!r}; expected a table")
    return cast("Mapping[str, object]", stated)


def _scalar(stated: object, kind: Any, folder: Path, place: str) -> object:
    if kind is Path and isinstance(stated, str):
        return folder / Path(stated).expanduser()
    if kind is float and isinstance(stated, int | float) and not isinstance(stated, bool):
        return float(stated)
    if type(stated) is kind:
        return stated
    name = "path" if kind is Path else getattr(kind, "__name__", str(kind))
    raise InputError(f"{place} is {stated!r}; expected a value of type {name}")
