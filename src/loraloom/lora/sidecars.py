"""What other programs keep beside a LoRA file: descriptions, trigger words, preview pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from loraloom.confined import open_regular

MAX_BYTES = 16_000_000
PREVIEWS = ("png", "jpg", "jpeg", "webp", "gif")
SUFFIXES = (
    *(f"{middle}.{kind}" for middle in (".preview", "") for kind in PREVIEWS),
    ".civitai.info", ".metadata.json", ".json", ".description.txt", ".txt",
)  # fmt: skip
"""What follows a LoRA's stem in the names of the files beside it; pictures first."""


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The files found beside a LoRA. user: A1111's and Forge's <stem>.json. civitai: the model-version JSON
    that Civitai Helper or LoRA Manager saved. description: plain text. previews: pictures, best first."""

    user: Mapping[str, object]
    civitai: Mapping[str, object]
    description: str
    previews: tuple[Path, ...]


def read_sidecars(path: Path) -> Sidecars:
    """Everything beside the file; what is missing, too large or damaged counts as absent."""
    stem = path.with_suffix("")
    user = _json(stem.with_name(stem.name + ".json"))
    civitai = _json(stem.with_name(stem.name + ".civitai.info"))
    if not civitai:
        manager = _json(stem.with_name(stem.name + ".metadata.json"))
        inner = manager.get("civitai")
        civitai = cast(dict[str, object], inner) if isinstance(inner, dict) else manager
    description = _text(stem.with_name(stem.name + ".description.txt")) or _text(
        stem.with_name(stem.name + ".txt")
    )
    stated = user.get("description")
    if not description and isinstance(stated, str):
        description = stated
    names = [f"{stem.name}{middle}.{kind}" for middle in ("", ".preview") for kind in PREVIEWS]
    previews = tuple(found for name in names if (found := stem.with_name(name)).is_file())
    return Sidecars(user, civitai, description.strip(), previews)


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        return ""
    return content.decode("utf-8", errors="replace") if len(content) <= MAX_BYTES else ""


def _json(path: Path) -> Mapping[str, object]:
    text = _text(path)
    if not text:
        return {}
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, object], found) if isinstance(found, dict) else {}
