"""Trigger words: the words in a prompt that a LoRA was trained to answer to, from six sources in order.

The user's own note, Civitai's list, the trainer's phrase, its usage hint, the tags that every training
picture carried, the names of the training folders. The first source that says anything counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from loraloom.lora.sidecars import Sidecars

SHOWN_TAGS = 24
LONG_TAG = 16
"""Mean tag length from which tags are captions: these are counted by their words (of 3 letters or more)."""

ALWAYS_THERE = 0.95
"""Share of the most frequent tag's count from which a tag counts as carried by every picture."""


@dataclass(frozen=True, slots=True)
class Triggers:
    """words: what to write into a prompt. source: where it was found ("" where nowhere)."""

    words: tuple[str, ...] = ()
    source: str = ""


def triggers_of(metadata: Mapping[str, str], sidecars: Sidecars | None = None) -> Triggers:
    """The trigger words of a LoRA by the first source that has any."""
    frequent = frequent_tags(metadata)
    top = frequent[0][1] if frequent else 0
    sources: list[tuple[str, Iterable[str]]] = []
    if sidecars is not None:
        sources.append(("the user's note", _split(sidecars.user.get("activation text"))))
        words = sidecars.civitai.get("trainedWords")
        trained = cast(list[object], words) if isinstance(words, list) else []
        sources.append(("Civitai", [word for entry in trained for word in _split(entry)]))
    sources += [
        ("modelspec.trigger_phrase", _split(metadata.get("modelspec.trigger_phrase"))),
        ("modelspec.usage_hint", _split(metadata.get("modelspec.usage_hint"))),
        ("training tags", [tag for tag, count in frequent if count >= ALWAYS_THERE * top]),
        ("training folders", _folder_names(metadata)),
    ]
    for source, words in sources:
        found = tuple(dict.fromkeys(words))
        if found:
            return Triggers(found, source)
    return Triggers()


def _split(value: object) -> list[str]:
    """Words of a comma-separated note; a phrase without commas stays whole."""
    if not isinstance(value, str):
        return []
    return [part for piece in value.split(",") if (part := " ".join(piece.split()))]


def frequent_tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """Training tags with their counts over all folders, the most frequent first (`ss_tag_frequency`)."""
    counts: Counter[str] = Counter()
    for tags in _json_object(metadata.get("ss_tag_frequency")).values():
        if isinstance(tags, dict):
            for tag, count in cast(dict[str, object], tags).items():
                if isinstance(count, int) and not isinstance(count, bool) and tag.strip():
                    counts[tag.strip()] += count
    if counts and sum(map(len, counts)) / len(counts) >= LONG_TAG:
        words: Counter[str] = Counter()
        for tag, count in counts.items():
            for word in set(re.findall(r"\w{3,}", tag.lower())):
                words[word] += count
        counts = words
    return counts.most_common(SHOWN_TAGS)


def _folder_names(metadata: Mapping[str, str]) -> list[str]:
    """kohya's training folders are called "<repeats>_<trigger> <class>"."""
    names: list[str] = []
    for folder in _json_object(metadata.get("ss_dataset_dirs")):
        found = re.fullmatch(r"\d+_(.+)", folder)
        if found:
            names.append(found[1].strip())
    return names


def _json_object(text: str | None) -> dict[str, object]:
    if not text:
        return {}
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, object], found) if isinstance(found, dict) else {}
