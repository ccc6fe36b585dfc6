"""Pictures and captions on disk → examples: kohya's folders, caption files, repeats, validation split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from PIL import Image, UnidentifiedImageError

from loraloom.errors import InputError
from loraloom.training.settings import FolderSettings

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")
_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)$")
MAX_CAPTION = 20_000
"""Characters of a caption file that are believed to be a caption."""


@dataclass(frozen=True, slots=True)
class Example:
    """One picture. digest: BLAKE3 of the file; size: (width, height) once turned upright."""

    path: Path
    caption: str
    digest: str
    size: tuple[int, int]
    folder: FolderSettings
    repeats: int


@dataclass(frozen=True, slots=True)
class Split:
    """What is trained on, and what the validation loss is measured on."""

    training: tuple[Example, ...]
    validation: tuple[Example, ...]


def read_examples(folders: Sequence[FolderSettings]) -> tuple[Example, ...]:
    """Every picture of the datasets, sorted by path. InputError for folders without pictures."""
    return tuple(example for folder in folders for example in _folder(folder))


def _folder(settings: FolderSettings) -> Iterator[Example]:
    root = settings.folder
    if not root.is_dir():
        raise InputError(f"the dataset folder {root} does not exist")
    leaves = [f for f in sorted(root.iterdir()) if f.is_dir() and _KOHYA_FOLDER.match(f.name)] or [root]
    found = False
    for leaf in leaves:
        match = _KOHYA_FOLDER.match(leaf.name)
        repeats = settings.repeats or (int(match.group(1)) if match else 1)
        default = settings.caption or (match.group(2) if match else "")
        for path in sorted(leaf.iterdir()):
            if path.suffix.lower() in PICTURE_SUFFIXES and repeats > 0:
                found = True
                yield _example(path, settings, repeats, default)
    if not found:
        raise InputError(
            f"{root} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no folders named like "
            '"10_trigger class" that do'
        )


def _example(path: Path, settings: FolderSettings, repeats: int, default: str) -> Example:
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if picture.getexif().get(0x0112, 1) >= 5:  # turned by a quarter
                width, height = height, width
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}") from error
    digest = blake3(path.read_bytes()).hexdigest()
    return Example(path, _caption(path, settings, default), digest, (width, height), settings, repeats)


def _caption(path: Path, settings: FolderSettings, default: str) -> str:
    text = default
    for suffix in CAPTION_SUFFIXES:
        file = path.with_suffix(suffix)
        if file.is_file():
            try:
                text = " ".join(file.read_text("utf-8-sig")[:MAX_CAPTION].split())
            except UnicodeDecodeError as error:
                raise InputError(f"{file} is not UTF-8 text: {error.reason}") from error
            break
    if settings.trigger and settings.trigger not in text:
        text = f"{settings.trigger}, {text}" if text else settings.trigger
    return text


def split(examples: Sequence[Example], share: float) -> Split:
    """Part of the examples is kept for validation: those whose digests are lowest, so that adding pictures
    does not change which of the old ones are kept."""
    count = round(len(examples) * share)
    kept = {e.digest for e in sorted(examples, key=lambda e: e.digest)[:count]}
    training = tuple(e for e in examples if e.digest not in kept)
    if not training:
        raise InputError("no picture is left to train on: lower validation.share or add pictures")
    return Split(training, tuple(e for e in examples if e.digest in kept))


def tags(caption: str) -> list[str]:
    """The comma-separated parts of a caption."""
    return [part for part in (piece.strip() for piece in caption.split(",")) if part]


def tag_frequency(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Folder name → tag → pictures that carry it, as kohya's trainers write it (`ss_tag_frequency`)."""
    found: dict[str, Counter[str]] = {}
    for example in examples:
        name = f"{example.repeats}_{example.path.parent.name.partition('_')[2] or example.path.parent.name}"
        found.setdefault(name, Counter()).update(tags(example.caption))
    return {folder: dict(counts.most_common()) for folder, counts in found.items()}
