"""What went wrong with a job, in a person's words, and what to do about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.workflow.graph import JSON


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


# What messages begin with: 'node 4 “Start picture” (LoadImage): '.
_NODE = re.compile(r"node \S+ (“[^”]*” )?\([^()]*\): ", re.IGNORECASE)


def trouble_of(error: Mapping[str, JSON] | None) -> Trouble | None:
    """What to say of a job's error; None where there is none."""
    if error is None:
        return None
    kind, message = str(error.get("type") or ""), str(error.get("message") or "")
    title, class_type = str(error.get("title") or ""), str(error.get("class_type") or "")
    where = title if title == class_type or not class_type else f"{title} ({class_type})".strip()
    traceback = error.get("traceback")
    details = "".join(str(line) for line in traceback) if isinstance(traceback, list) else ""
    for pattern, what, advice in _KNOWN:
        if re.search(pattern, f"{kind} {message}", re.IGNORECASE):
            return Trouble(what or _sentence(message), advice, where, details)
    advice = (
        "Change the settings that this names, or retry; if it comes again, the details help to report it."
    )
    return Trouble(_sentence(message) or "It stopped without saying why.", advice, where, details)


def _sentence(text: str) -> str:
    text = _NODE.sub("", text.strip(), count=1)
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".!?" else ".")
