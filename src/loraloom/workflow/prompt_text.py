"""What an editor does to texts before it queues them: choices, comments, dates, values of other widgets.

Only graphs in UI format go through here; texts of API graphs are final.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import datetime

_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*")
_ESCAPED = re.compile(r"\\([{}|])")
_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')

# Classes whose file name prefix an editor fills in.
SAVERS = frozenset({
    "SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveAnimatedPNG",
    "SaveWEBM", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB",
    "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud", "CLIPSave", "VAESave", "ModelSave", "LoraSave",
    "SaveLatent",
})  # fmt: skip


def choose(text: str, rng: random.Random) -> str:
    """A text with comments removed and one option of every `{a|b}` chosen.

    Choices nest; `\\{`, `\\|` and `\\}` stand for the signs themselves. A brace that is never closed runs to
    the end of the text.
    """
    text = _COMMENT.sub("", text)
    # One frame per open brace: the options so far, the last one still growing.
    frames: list[list[list[str]]] = [[[]]]
    position = 0
    while position < len(text):
        sign = text[position]
        position += 1
        if sign == "\\" and position < len(text):
            frames[-1][-1].append(sign + text[position])
            position += 1
        elif sign == "{":
            frames.append([[]])
        elif sign == "|" and len(frames) > 1:
            frames[-1].append([])
        elif sign == "}" and len(frames) > 1:
            _close(frames, rng)
        else:
            frames[-1][-1].append(sign)
    while len(frames) > 1:
        _close(frames, rng)
    return _ESCAPED.sub(r"\1", "".join(frames[0][0]))


def _close(frames: list[list[list[str]]], rng: random.Random) -> None:
    options = frames.pop()
    frames[-1][-1].append("".join(rng.choice(options)))


def fill(text: str, value_of: Callable[[str, str], object | None], now: datetime) -> str:
    """A text with `%date:…%` and `%node.widget%` filled in; what cannot be filled in stays.

    value_of: (node name, widget name) → the widget's value, or None.
    """

    def replacement(match: re.Match[str]) -> str:
        parts = match[1].split(".")
        if len(parts) != 2:
            return date_text(parts[0][5:], now) if parts[0].startswith("date:") else match[0]
        value = value_of(parts[0], parts[1])
        return match[0] if value is None else _UNSAFE.sub("_", _shown(value))

    return _PLACEHOLDER.sub(replacement, text)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def date_text(pattern: str, now: datetime) -> str:
    """A date by a pattern of d, M, y, h, m, s; repeated letters pad with zeros, `yy` is two digits."""
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        letters = match[0]
        if letters[0] == "y":
            return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(letters, letters)
        return f"{parts[letters[0]]}".zfill(len(letters))

    return _DATE.sub(part, pattern)
