"""Markers for `Annotated`: what an editor shows for a node's parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loraloom.workflow.graph import JSON


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

    values: Mapping[str, JSON] = field(hash=False)  # so that `Annotated[…] | None` can be said
