"""Writes docs/reference/python.md from the signatures and docstrings of the Python interface.

usage: .venv/bin/python scripts/index_python.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import loraloom
from loraloom import errors, result
from loraloom.engine import events
from loraloom.session import NodeFailure

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"
LINE = 100
HEAD = """# Python interface

What `import loraloom` offers. This page is written by `scripts/index_python.py` from signatures and
docstrings; a test fails when it is not current. Examples: [Using Loraloom](../usage.md).
"""


def page() -> str:
    lines = [HEAD]
    for name in loraloom.__all__:
        found = getattr(loraloom, name)
        if inspect.isclass(found):
            lines += _class(f"loraloom.{name}", found)
        elif callable(found):
            lines += _callable("##", f"loraloom.{name}", found)
    lines += _class("loraloom.result.OutputFile", result.OutputFile)
    lines += [
        "## Errors",
        "",
        *_docstring(errors),
        *_class("loraloom.session.NodeFailure", NodeFailure, "###"),
    ]
    lines += ["## Events", "", "`loraloom.engine.events`: what `on_event` and `Session.events` tell.", ""]
    lines += _docstring(events)
    for event in events.Event.__args__:
        lines += _class(event.__name__, event, "###")
    return "\n".join(lines)


def _class(title: str, found: type, level: str = "##") -> Iterator[str]:
    yield from (f"{level} {title}", "")
    if dataclasses.is_dataclass(found):
        fields = [f"{field.name}: {field.type}" for field in dataclasses.fields(found)]
        yield from _code("\n".join(fields)) if fields else ()
        yield from _docstring(found) if not (found.__doc__ or "").startswith(f"{found.__name__}(") else ()
    else:
        if not issubclass(found, Exception):
            yield from _code(_signature(found.__name__, found))
        yield from _docstring(found)
    for name, member in vars(found).items():
        if name.startswith("_") or not getattr(member, "__doc__", None):
            continue
        if isinstance(member, property):
            yield from (f"{level}# {name}", "", *_docstring(member))
        elif inspect.isfunction(member):
            yield from _callable(f"{level}#", name, member)


def _callable(level: str, title: str, found: Callable[..., Any]) -> Iterator[str]:
    yield from (f"{level} {title}", "", *_code(_signature(found.__name__, found)), *_docstring(found))


def _signature(name: str, found: Any) -> str:
    """As one would write it, an argument a line where it is long."""
    signature = inspect.signature(found)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    said = [
        f"{p.name}: {p.annotation}" + ("" if p.default is p.empty else f" = {p.default!r}")
        for p in parameters
    ]
    keywords = [i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY]
    if keywords:
        said.insert(keywords[0], "*")
    end = "" if inspect.isclass(found) else f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(said)}){end}"
    return line if len(line) <= LINE else f"{name}(\n" + "".join(f"    {one},\n" for one in said) + f"){end}"


def _code(text: str) -> Iterator[str]:
    yield from ("```text", text, "```", "")


def _docstring(found: Any) -> Iterator[str]:
    """Sentences as paragraphs, "name: meaning" as a list, what is indented as it stands."""
    for paragraph in inspect.cleandoc(found.__doc__ or "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines[0].startswith("    ") or len([line for line in lines if "──" in line]) > 1:
            yield from _code(dedent("\n".join(lines)))
            continue
        listing = False
        for line in lines:
            entry = re.match(r"((?:\w+, )*\w+): (.+)", line)
            if listing and not entry and not line.startswith(" "):
                yield ""
            listing = entry is not None or (listing and line.startswith(" "))
            yield f"- `{entry[1]}`: {entry[2]}" if entry else line
        yield ""


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
