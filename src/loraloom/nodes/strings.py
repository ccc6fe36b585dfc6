"""Nodes on texts."""

from __future__ import annotations

import re
from typing import Annotated

from loraloom.engine.node import Choice, Number, Optional_, Text, node
from loraloom.errors import InputError

CATEGORY = "utils/string"
MODULE = "comfy_extras.nodes_string"
Lines = Annotated[str, Text(multiline=True)]
Line = Annotated[str, Text(multiline=False)]


@node("StringConcatenate", category=CATEGORY, display_name="Concatenate", v3=True, python_module=MODULE)
def concatenate(string_a: Lines, string_b: Lines, delimiter: Line = "") -> str:
    """Join two texts."""
    return delimiter.join((string_a, string_b))


@node("StringSubstring", category=CATEGORY, display_name="Substring", v3=True, python_module=MODULE)
def substring(string: Lines, start: int, end: int) -> str:
    """The characters from `start` to before `end`; negative numbers count from the end."""
    return string[start:end]


@node(
    "StringLength",
    category=CATEGORY,
    display_name="Length",
    outputs=("length",),
    v3=True,
    python_module=MODULE,
)
def length(string: Lines) -> int:
    """The number of characters."""
    return len(string)


@node("CaseConverter", category=CATEGORY, display_name="Case Converter", v3=True, python_module=MODULE)
def convert_case(
    string: Lines, mode: Annotated[str, Choice(("UPPERCASE", "lowercase", "Capitalize", "Title Case"))]
) -> str:
    """Write a text in capitals, in small letters, or with capital initials."""
    forms = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize}
    return forms.get(mode, str.title)(string)


@node("StringTrim", category=CATEGORY, display_name="Trim", v3=True, python_module=MODULE)
def trim(string: Lines, mode: Annotated[str, Choice(("Both", "Left", "Right"))]) -> str:
    """Take the white space from the ends of a text."""
    return {"Left": str.lstrip, "Right": str.rstrip}.get(mode, str.strip)(string)


@node("StringReplace", category=CATEGORY, display_name="Replace", v3=True, python_module=MODULE)
def replace(string: Lines, find: Lines, replace: Lines) -> str:
    """Replace every occurrence of a text."""
    return string.replace(find, replace)


@node(
    "StringContains",
    category=CATEGORY,
    display_name="Contains",
    outputs=("contains",),
    v3=True,
    python_module=MODULE,
)
def contains(string: Lines, substring: Lines, case_sensitive: bool = True) -> bool:
    """Whether a text holds another."""
    return substring in string if case_sensitive else substring.lower() in string.lower()


@node("StringCompare", category=CATEGORY, display_name="Compare", v3=True, python_module=MODULE)
def compare(
    *,
    string_a: Lines,
    string_b: Lines,
    mode: Annotated[str, Choice(("Starts With", "Ends With", "Equal"))],
    case_sensitive: bool = True,
) -> bool:
    """Whether a text begins with, ends with or equals another."""
    a, b = (string_a, string_b) if case_sensitive else (string_a.lower(), string_b.lower())
    return {"Starts With": str.startswith, "Ends With": str.endswith}.get(mode, str.__eq__)(a, b)


@node(
    "RegexMatch",
    category=CATEGORY,
    display_name="Regex Match",
    outputs=("matches",),
    v3=True,
    python_module=MODULE,
)
def regex_match(
    string: Lines,
    regex_pattern: Lines,
    case_insensitive: bool = True,
    multiline: bool = False,
    dotall: bool = False,
) -> bool:
    """Whether a regular expression is found in a text."""
    return _pattern(regex_pattern, case_insensitive, multiline, dotall).search(string) is not None


@node("RegexExtract", category=CATEGORY, display_name="Regex Extract", v3=True, python_module=MODULE)
def regex_extract(
    *,
    string: Lines,
    regex_pattern: Lines,
    mode: Annotated[str, Choice(("First Match", "All Matches", "First Group", "All Groups"))],
    case_insensitive: bool = True,
    multiline: bool = False,
    dotall: bool = False,
    group_index: Annotated[int, Number(min=0, max=100)] = 1,
) -> str:
    """What a regular expression finds in a text, or one of its groups; several finds on lines each."""
    pattern = _pattern(regex_pattern, case_insensitive, multiline, dotall)
    found = list(pattern.finditer(string))
    if mode == "All Matches":
        return "\n".join(match[1 if pattern.groups else 0] or "" for match in found)
    if mode.endswith("Group") or mode.endswith("Groups"):
        found = found if group_index <= pattern.groups else []
    group = group_index if "Group" in mode else 0
    return "\n".join(match[group] or "" for match in (found if mode == "All Groups" else found[:1]))


@node("RegexReplace", category=CATEGORY, display_name="Regex Replace", v3=True, python_module=MODULE)
def regex_replace(
    *,
    string: Lines,
    regex_pattern: Lines,
    replace: Lines,
    case_insensitive: Annotated[bool, Optional_()] = True,
    multiline: Annotated[bool, Optional_()] = False,
    dotall: Annotated[bool, Optional_()] = False,
    count: Annotated[int, Number(min=0, max=100), Optional_()] = 0,
) -> str:
    """Replace what a regular expression finds; a count of 0 replaces all."""
    try:
        return _pattern(regex_pattern, case_insensitive, multiline, dotall).sub(replace, string, count=count)
    except (re.error, IndexError) as error:
        raise InputError(f"the replacement {replace!r} does not fit the expression: {error}") from error


def _pattern(text: str, case_insensitive: bool, multiline: bool, dotall: bool) -> re.Pattern[str]:
    flags = re.IGNORECASE if case_insensitive else re.NOFLAG
    flags |= re.MULTILINE if multiline else re.NOFLAG
    flags |= re.DOTALL if dotall else re.NOFLAG
    try:
        return re.compile(text, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{text!r} is no regular expression: {error}") from error
