"""Pictures and captions on disk → examples: kohya's folders, caption files, repeats, validation split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from loraloom.errors import InputError
from loraloom.folders import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from loraloom.pictures import opened
from loraloom.training.settings import FolderSettings

_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)$")
MAX_CAPTION = 20_000
"""Characters of a caption file that are believed to be a caption."""

SMALLEST = 4
"""Sides of a picture below which it holds nothing to learn."""

_ONLY_PICTURES_ELSEWHERE = (".heic", ".heif", ".jxl", ".psd", ".tga", ".svg", ".raw", ".dng", ".jp2", ".mp4")
"""Suffixes of pictures that are not read, and worth a word."""


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
        captions = _captions(leaf)
        for path in sorted(leaf.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and repeats > 0:
                found = True
                yield _example(path, captions.get(path.stem), settings, repeats, default)
    if not found:
        raise InputError(
            f"{root} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) and no folders named like "
            '"10_trigger class" that do'
        )


def _captions(folder: Path) -> dict[str, Path]:
    """Picture name without suffix → its caption file, whatever the case of the file's suffix."""
    found: dict[str, Path] = {}
    for suffix in sorted(CAPTION_SUFFIXES):  # a .txt file goes before a .caption file
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() == suffix and not path.name.startswith(".") and path.is_file():
                found[path.stem] = path
    return found


def _example(
    path: Path, caption: Path | None, settings: FolderSettings, repeats: int, default: str
) -> Example:
    with opened(path) as picture:
        width, height = picture.size
        if picture.getexif().get(0x0112, 1) >= 5:  # turned by a quarter
            width, height = height, width
    if min(width, height) < SMALLEST:
        raise InputError(f"{path} has {width}×{height} pixels; a picture to train on has {SMALLEST} at least")
    digest = blake3(path.read_bytes()).hexdigest()
    text = _caption(caption, settings, default)
    return Example(path, text, digest, (width, height), settings, repeats)


def _caption(file: Path | None, settings: FolderSettings, default: str) -> str:
    text = default
    if file is not None:
        try:
            text = " ".join(file.read_text("utf-8-sig")[:MAX_CAPTION].split())
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text: {error.reason}") from error
    if settings.trigger and settings.trigger not in text:
        text = f"{settings.trigger}, {text}" if text else settings.trigger
    return text


def remarks(examples: Sequence[Example]) -> Iterator[str]:
    """What a user should know of the data: files that are not read, captions of nothing, copies."""
    used = {example.path for example in examples}
    folders = dict.fromkeys(path.parent for path in used)
    for folder in folders:
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        if other := [path.name for path in files if path.suffix.lower() in _ONLY_PICTURES_ELSEWHERE]:
            yield f"{folder}: {_few(other)} left out: not a kind of picture that is read"
        stems = {path.stem for path in used if path.parent == folder}
        captions = (path for path in files if path.suffix.lower() in CAPTION_SUFFIXES)
        if alone := [path.name for path in captions if path.stem not in stems]:
            yield f"{folder}: {_few(alone)} left out: there is no picture of that name"
    for root in dict.fromkeys(example.folder.folder for example in examples):
        others = (path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith("."))
        unread = [path.name for path in others if path not in folders and _holds_pictures(path)]
        if unread:
            yield f"{root}: the folders {_few(unread)} left out: only those named like 10_name are entered"
    copies = len(examples) - len({example.digest for example in examples})
    if copies and copies == len(examples) - 1:
        yield f"all {len(examples)} pictures are copies of one; none is kept for validation"
    elif copies:
        yield f"{copies} of {len(examples)} pictures are copies of others; copies are kept together"


def _holds_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def split(examples: Sequence[Example], share: float) -> Split:
    """Part of the examples is kept for validation: those whose digests are lowest, so that adding pictures
    does not change which of the old ones are kept. Copies of a picture are kept together."""
    digests = sorted({e.digest for e in examples})
    count = min(round(len(digests) * share), len(digests) - 1)
    kept = frozenset(digests[:count])
    return Split(
        tuple(e for e in examples if e.digest not in kept), tuple(e for e in examples if e.digest in kept)
    )


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
