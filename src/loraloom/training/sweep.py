"""Several runs from one settings file: values for some of its keys, in all combinations or in some of them.

    [sweep]
    random = 6                       # as many combinations, drawn; without it, all of them
    [sweep.values]
    "optimizer.rate" = [1e-4, 5e-4]
    "adapter.rank" = [4, 16]

Every combination is a run like any other, in a folder of its own under the file's `output`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from math import prod
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field
from pydantic.dataclasses import dataclass

from loraloom.errors import InputError
from loraloom.training.settings import KNOWN_KEYS, Settings, Whole
from loraloom.training.toml import parse

MOST = 1000
"""Runs of one sweep."""
TABLE = "sweep"
_OWN = ("name", "output")
"""Keys that a sweep sets itself."""
_PLAIN = re.compile(r"[\w.+-]{1,120}")


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class Sweep:
    """values: dotted key → what it shall be. random: how many combinations are drawn; 0: all are run."""

    values: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    random: Annotated[Whole, Field(ge=0, le=MOST)] = 0
    seed: Whole = 0


@dataclass(frozen=True, slots=True)
class Combination:
    """One run of a sweep. values: key → its value; title: them in a few words."""

    values: dict[str, Any]
    title: str
    settings: Settings


def read_values(texts: Sequence[str]) -> dict[str, list[Any]]:
    """KEY=A,B,C of each; the values as TOML writes them, or texts. Raises InputError."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key.strip() or not values.strip():
            raise InputError(f"{text!r} is no part of a sweep; expected KEY=A,B,C such as adapter.rank=4,16")
        try:
            found[key.strip()] = tomllib.loads(f"values = [{values}]")["values"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = [_value(part.strip()) for part in values.split(",")]
    return found


def combinations(
    stated: Mapping[str, object],
    folder: Path,
    more: Mapping[str, Sequence[Any]] = {},
    draw: int | None = None,
) -> list[Combination]:
    """The runs that a settings file, parsed as TOML, means; none where it says nothing of a sweep.

    folder: what its paths are relative to. more, draw: go before its own `sweep.values` and `sweep.random`.
    Raises InputError, before any of them runs, also for a value that one of them cannot have."""
    plain = {key: value for key, value in stated.items() if key != TABLE}
    if TABLE not in stated and not more:
        return []
    table = stated.get(TABLE, {})
    if not isinstance(table, dict):
        raise InputError(f"sweep is {table!r}; expected a table with sweep.values")
    sweep = parse(cast("dict[str, object]", table), Sweep, folder)
    values = dict(_flat(sweep.values)) | {key: [*of] for key, of in more.items()}
    chosen = _chosen(values, sweep.random if draw is None else draw, sweep.seed)
    names = _short_names([*values])
    return [_combination(plain, folder, one, names) for one in chosen]


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Dotted keys and their lists; TOML makes tables of dotted keys."""
    for name, value in table.items():
        key = f"{above}{name}"
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), f"{key}.")
        elif isinstance(value, list) and value:
            yield key, cast("list[Any]", value)
        else:
            raise InputError(f"sweep.values.{key} is {value!r}; expected a list of values")


def _chosen(values: Mapping[str, list[Any]], draw: int, seed: int) -> list[dict[str, Any]]:
    if not values:
        raise InputError("sweep.values is empty: give lists of values for some keys")
    for key in values:
        if key.partition(".")[0] in _OWN:
            raise InputError(f"a sweep sets {key} itself; leave it out of sweep.values")
    count = prod(len(of) for of in values.values())
    if not draw and count > MOST:
        raise InputError(f"the sweep has {count} combinations, at most {MOST} are run; draw some with random")
    numbers = range(count) if not draw else sorted(random.Random(seed).sample(range(count), min(draw, count)))
    return [_numbered(values, number) for number in numbers]


def _numbered(values: Mapping[str, list[Any]], number: int) -> dict[str, Any]:
    """The combination of that number; the last key changes first."""
    found: dict[str, Any] = {}
    for key in reversed([*values]):
        number, place = divmod(number, len(values[key]))
        found[key] = values[key][place]
    return {key: found[key] for key in values}


def _combination(
    plain: Mapping[str, object], folder: Path, values: Mapping[str, Any], names: Mapping[str, str]
) -> Combination:
    stated = cast("dict[str, Any]", copy.deepcopy(dict(plain)))
    for key, value in values.items():
        _set(stated, key, value)
    title = ", ".join(f"{names[key]} {_text(value)}" for key, value in values.items())
    place = _folder_name(values, names)
    if isinstance(stated.get("output"), str):  # what is wrong with it otherwise, Settings will say
        stated.setdefault("cache", str(Path(stated["output"], "cache")))
        stated["output"] = str(Path(stated["output"], place))
    if isinstance(stated.get("name"), str) and stated["name"]:
        stated["name"] = f"{stated['name']}-{place}"
    try:
        settings = parse(stated, Settings, folder)
    except InputError as error:
        raise InputError(f"{title}: {error}") from error
    return Combination(dict(values), title, settings)


def _set(stated: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key; a number among its parts is a place in a list."""
    *above, last = key.split(".")
    table: Any = stated
    for part in above:
        if isinstance(table, dict):
            table = cast("dict[str, Any]", table).setdefault(part, {})
        else:
            table = _item(table, part, key)
    if isinstance(table, dict):
        table[last] = value
    else:
        _item(table, last, key)
        table[int(last)] = value


def _item(table: Any, part: str, key: str) -> Any:
    if isinstance(table, list) and part.isascii() and part.isdigit():
        items = cast("list[Any]", table)
        if int(part) < len(items):
            return items[int(part)]
    raise InputError(f"{key} is not a setting: {part!r} names nothing there")


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """What is shown for keys: their last part, where that says which is meant."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _folder_name(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The same for the same values of the same keys, so that runs are found again in a larger sweep."""
    name = "_".join(f"{names[key]}-{_text(value)}" for key, value in values.items())
    if _PLAIN.fullmatch(name):
        return name
    digest = hashlib.sha256(json.dumps([*values.items()], default=str).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^a-zA-Z0-9.+-]+', '_', name)[:60].strip('_. ')}-{digest}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
