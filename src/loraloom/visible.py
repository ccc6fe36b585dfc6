"""Text from files and from others, so that a terminal shows it and does not act upon it.

A file's name, a prompt or a header may hold escape sequences, which move the cursor, change what was printed
before or set the window's title, and characters that change the direction of what follows (CVE-2021-42574).
"""

from __future__ import annotations

import re

# Controls but tab and line feed; what separates lines and paragraphs; direction; no width.
_ACTED_UPON = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
_EITHER = re.compile(f"[{_ACTED_UPON}]")
_NOT_COLOURS = re.compile(rf"(?!\x1b\[[0-9;]*m)(?!\r)[{_ACTED_UPON}]")


def visible(text: str) -> str:
    """The text with these characters as their codes, such as `\\x1b`. Lines and tabs stay."""
    return _EITHER.sub(_code, text)


def visible_log(text: str) -> str:
    """What a program prints, in colours and with lines that it prints anew, but nothing beyond."""
    return _NOT_COLOURS.sub(_code, text)


def visible_json(text: str) -> str:
    """JSON of the same values without any such character."""
    return _EITHER.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _code(found: re.Match[str]) -> str:
    number = ord(found.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
