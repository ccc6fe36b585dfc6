"""Whether a value is one of an input's choices, and which file a name means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from unicodedata import normalize

from loraloom.folders import nearest_files
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import FileLister, Input

# Folders whose files are not models.
INPUT_FOLDERS = frozenset({"input", "input_latents", "input_folders", "output"})
# Suffixes of files that are never opened, but may have been converted.
_PICKLES = frozenset({"ckpt", "pt", "pth", "bin", "pkl"})
_ANNOTATIONS = (" [input]", " [output]", " [temp]")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a value means: the choice as the list spells it, and a note if it was not exact."""

    value: JSON
    note: str = ""


class FileNames:
    """The files of the model folders, each folder listed once."""

    def __init__(self, files: FileLister) -> None:
        self._files = files
        self._lists: dict[str, Sequence[str]] = {}
        self._spellings: dict[str, dict[str, str]] = {}
        self._bare: dict[str, dict[str, list[str]]] = {}

    def names(self, folder: str) -> Sequence[str]:
        if folder not in self._lists:
            self._lists[folder] = list(self._files(folder))
        return self._lists[folder]

    def find(self, folder: str, name: str) -> Choice | None:
        """The file of that name: exactly, with the other path separator, with its letters composed otherwise
        (NFC, NFD), or alone in some subfolder or without its suffix; a pickle's name, as what it was
        converted to."""
        spellings = self._spellings.get(folder)
        if spellings is None:
            spellings = self._spellings[folder] = {_forward(n): n for n in self.names(folder)}
            self._bare[folder] = {}
            for listed in self.names(folder):
                self._bare[folder].setdefault(_composed(_bare(listed)), []).append(listed)
        wanted = _forward(name)
        stem, dot, suffix = wanted.rpartition(".")
        if dot and suffix.lower() in _PICKLES and (converted := stem + ".safetensors") in spellings:
            return Choice(spellings[converted], f"{folder}/{name}: {spellings[converted]} beside it is used")
        if wanted in spellings:
            return Choice(spellings[wanted])
        composed = [listed for text, listed in spellings.items() if _composed(text) == _composed(wanted)]
        if len(composed) == 1:
            return Choice(composed[0], f"{folder}/{name} was found with its letters composed in another way")
        if "/" in wanted:
            return None
        matches = self._bare[folder].get(_composed(wanted), [])
        if not matches:  # a name without its suffix
            matches = [file for bare, files in self._bare[folder].items() for file in files
                       if bare.rpartition(".")[0] == _composed(wanted)]  # fmt: skip
        if len(matches) == 1:
            return Choice(matches[0], f"{folder}/{name} was found as {matches[0]}")
        return None

    def nearest(self, folder: str, name: str, count: int = 3) -> tuple[str, ...]:
        return nearest_files(name, self.names(folder), count)


def find_choice(entry: Input, value: JSON, files: FileNames) -> Choice | None:
    """The choice of a COMBO that a value means, or None if it is none of them.

    An input without choices and without folders takes anything: what it offers is not known here.
    """
    if not entry.choices and not entry.folders:
        return Choice(value)
    if is_in(value, entry.choices):
        return Choice(value)
    if isinstance(value, str):
        for folder in entry.folders:
            name = value
            if folder in INPUT_FOLDERS and value.endswith(_ANNOTATIONS):
                if not value.endswith(" [input]"):
                    return Choice(value)
                name = value.removesuffix(" [input]")
            found = files.find(folder, name)
            if found is not None:
                return Choice(value) if name != value else found
    if isinstance(value, list) and entry.options.get("multiselect"):
        chosen = [find_choice(entry, item, files) for item in value]
        if all(choice is not None for choice in chosen):
            return Choice([choice.value for choice in chosen if choice is not None])
    return None


def is_in(value: JSON, choices: Iterable[JSON]) -> bool:
    """Whether a value is among the choices; true is not 1 here."""
    return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices)


def nearest_choices(value: JSON, choices: Sequence[JSON], count: int = 3) -> tuple[str, ...]:
    """The choices that a text most likely means: as other programs write them, or misspelled."""
    if not isinstance(value, str):
        return ()
    plain = {_plain(choice): choice for choice in choices if isinstance(choice, str)}
    wanted = _plain(value)
    if wanted in plain:
        return (plain[wanted],)
    if wanted.endswith("karras") and (stem := wanted.removesuffix("karras")) in plain:
        return (plain[stem],)
    return tuple(plain[key] for key in get_close_matches(wanted, plain, n=count, cutoff=0.6))


def _plain(name: str) -> str:
    """A name as it is compared: "Euler a" and "euler_ancestral" are one, as are "DPM++ 2M" and "dpmpp_2m"."""
    text = re.sub(r"[\s_-]+", " ", name.lower().replace("++", "pp")).strip()
    text = re.sub(r"\ba$", "ancestral", text)
    return text.replace(" ", "")


def _composed(name: str) -> str:
    return normalize("NFC", name)


def _forward(name: str) -> str:
    return name.replace("\\", "/")


def _bare(name: str) -> str:
    return _forward(name).rpartition("/")[2]
