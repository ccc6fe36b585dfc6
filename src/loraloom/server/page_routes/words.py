"""What went wrong with a job, in a person's words, and what to do about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.workflow.graph import JSON

TRAINING = "training"
"""The type of a training's error, which has no node and no details."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """what: one sentence. advice: what to do. where: the node, for who knows nodes. details: for a report."""

    what: str
    advice: str
    where: str = ""
    details: str = ""


# (pattern over type and message, what happened ("" keeps the message), what to do); the first that matches.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"OutOfMemory|out of memory|CUDA error: out of|MemoryError|not enough memory",
        "There was not enough memory for this drawing.",
        "Choose a smaller size or fewer pictures at once, or close other programs, then retry.",
    ),
    (
        r"quarantined|signal 9",
        "",
        "The program that draws was ended twice, most often because memory ran out. Choose a smaller size, "
        "then retry.",
    ),
    (
        r"nothing of this|none of its|no module of|not a LoRA|fits? no|has a place",
        "",
        "Switch this LoRA off, or choose a base model that it was made for: the library says which.",
    ),
    (
        r"cut short|damaged|holes?|pickle|header|Git LFS|web page, not a model",
        "",
        "Download that file again, or choose another one.",
    ),
    (
        r"not found|no such file|is not in the|does not exist|FileNotListed|MissingModels",
        "",
        "Put the file into its folder, or choose another one, then retry.",
    ),
    (r"No space left|disk", "", "Make room on the disk, then retry."),
    (r"restarted|server ended", "", "Retry the job."),
)


# What a message says of it already, where the advice says it too.
_ADVISED = re.compile(r"; (?:download it again|put the file there)\.?$")
# What messages begin with: 'node 4 “Start picture” (LoadImage): '.
_NODE = re.compile(r"node \S+ (“[^”]*” )?\([^()]*\): ", re.IGNORECASE)


def trouble_of(error: Mapping[str, JSON] | None) -> Trouble | None:
    """What to say of a job's error; None where there is none."""
    if error is None:
        return None
    kind, message = str(error.get("type") or ""), str(error.get("message") or "")
    if kind == TRAINING:
        return Trouble(_sentence(message), "Set right what this names, then go on: what was trained is kept.")
    title, class_type = str(error.get("title") or ""), str(error.get("class_type") or "")
    where = f"{title} ({class_type})" if title and class_type not in ("", title) else title or class_type
    traceback = error.get("traceback")
    details = "".join(str(line) for line in traceback) if isinstance(traceback, list) else ""
    for pattern, what, advice in _KNOWN:
        if re.search(pattern, f"{kind} {message}", re.IGNORECASE):
            return Trouble(what or _sentence(_ADVISED.sub("", message)), advice, where, details)
    advice = (
        "Change the settings that this names, or retry; if it comes again, the details help to report it."
    )
    return Trouble(_sentence(message) or "It stopped without saying why.", advice, where, details)


def _sentence(text: str) -> str:
    text = _NODE.sub("", text.strip(), count=1)
    word = text.partition(" ")[0]
    first = text[:1].upper() if word.isalpha() else text[:1]  # the name of a file stays as it is
    return first + text[1:] + ("" if not text or text[-1] in ".!?" else ".")
