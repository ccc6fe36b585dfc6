"""Model folders as ComfyUI lays them out, so that an existing ComfyUI folder works as it is.

A folder *kind* ("loras", "text_encoders", …) is looked for under every models root, under its present and
its older directory name, and in the places that an `extra_model_paths.yaml` adds. Names are shown with
forward slashes; both separators are understood. No name leads out of its folder: absolute names, drive
letters and `..` are refused. Links that the user made inside a model folder are followed.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import cast
from unicodedata import normalize

import yaml

from loraloom.errors import InputError

DIRECTORIES: dict[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "loras": ("loras",),
    "vae": ("vae",),
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("diffusion_models", "unet"),
    "embeddings": ("embeddings",),
    "upscale_models": ("upscale_models",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "clip_vision": ("clip_vision",),
    "style_models": ("style_models",),
    "gligen": ("gligen",),
    "hypernetworks": ("hypernetworks",),
    "vae_approx": ("vae_approx",),
    "configs": ("configs",),
    "diffusers": ("diffusers",),
    "photomaker": ("photomaker",),
    "classifiers": ("classifiers",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
}
OLD_KINDS = {"clip": "text_encoders", "unet": "diffusion_models", "t2i_adapter": "controlnet"}
MODEL_SUFFIXES = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf"})
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
)
CAPTION_SUFFIXES = frozenset({".txt", ".caption"})
INPUT_KINDS = {"input": IMAGE_SUFFIXES, "input_latents": frozenset({".latent"})}
"""Kinds that live in the input folder, each with the suffixes that it lists."""
PICTURE_FOLDERS = "input_folders"
"""The kind of the folders in the input folder that hold pictures to train on."""

TINY_VAES = ("taesd", "taesdxl", "taesd3", "taef1")
"""Autoencoders of two files, "NAME_encoder" and "NAME_decoder", in the folder "vae_approx"; kind "tiny_vae"
lists those that are there, found by the decoder."""


class FileNotListed(InputError):
    """A name that no folder of its kind holds; `nearest` are names that come close."""

    def __init__(self, kind: str, name: str, nearest: tuple[str, ...], searched: tuple[Path, ...]) -> None:
        self.kind, self.name, self.nearest = kind, name, nearest
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        where = ", ".join(str(p) for p in searched) or "no folder (give one with --models)"
        super().__init__(f"{name!r} is not in the {kind} folder. Searched {where}.{hint}")


@dataclass(frozen=True, slots=True)
class ExtraPaths:
    """Further directories by kind: those of sections with `is_default`, which come before the models
    folders, and all others, which come after them."""

    first: Mapping[str, tuple[Path, ...]] = field(default_factory=lambda: dict[str, tuple[Path, ...]]())
    last: Mapping[str, tuple[Path, ...]] = field(default_factory=lambda: dict[str, tuple[Path, ...]]())

    def then(self, other: ExtraPaths) -> ExtraPaths:
        """Those of a file that is read later: ComfyUI puts its defaults in front of all."""
        return ExtraPaths(_joined(other.first, self.first), _joined(self.last, other.last))


def _joined(*tables: Mapping[str, tuple[Path, ...]]) -> dict[str, tuple[Path, ...]]:
    kinds = dict.fromkeys(kind for table in tables for kind in table)
    return {kind: tuple(path for table in tables for path in table.get(kind, ())) for kind in kinds}


class ModelFolders:
    """The model files (and input pictures) that a run may use.

    roots: folders like ComfyUI's `models/`, in order of precedence.
    extra: further directories (from `extra_model_paths.yaml`).
    input_dir: where LoadImage finds its pictures; listed as kind "input".
    """

    def __init__(
        self, roots: Iterable[Path], extra: ExtraPaths | None = None, input_dir: Path | None = None
    ) -> None:
        self.roots = tuple(Path(root) for root in roots)
        self.extra = extra or ExtraPaths()
        self.input_dir = input_dir
        self._added: dict[tuple[str, str], Path] = {}

    def offered(self, kind: str, name: str) -> str | None:
        """What workflows call a file: its name in the folders, or that of any file on the disk, which is
        added to its kind for as long as these folders are used. None where there is no such file."""
        if self.find(kind, name) is not None:
            return name
        path = Path(os.path.abspath(os.path.expanduser(name)))
        if "\0" in name or not path.is_file():
            return None
        for directory in self.directories(kind):
            if path.is_relative_to(os.path.abspath(directory)):
                return path.relative_to(os.path.abspath(directory)).as_posix()
        known = path.name if self.find(kind, path.name) in (None, path) else path.as_posix()
        self._added[kind, known] = path
        return known

    def directories(self, kind: str) -> tuple[Path, ...]:
        """The existing directories of a kind, in order of precedence."""
        return tuple(d for d in self.searched(kind) if d.is_dir())

    def searched(self, kind: str) -> tuple[Path, ...]:
        """The directories of a kind, whether they exist or not, in order of precedence. What is no plain name
        is no kind: it may come from anywhere."""
        plain = _relative(kind)
        if plain is None or len(plain.parts) != 1:
            return ()
        kind = OLD_KINDS.get(kind, kind)
        if kind in INPUT_KINDS or kind == PICTURE_FOLDERS:
            return () if self.input_dir is None else (self.input_dir,)
        names = DIRECTORIES.get(kind, (kind,))
        own = (root / name for root in self.roots for name in names)
        return (*self.extra.first.get(kind, ()), *own, *self.extra.last.get(kind, ()))

    def list(self, kind: str) -> list[str]:
        """Names of the files of a kind, relative to their directory, sorted, each once."""
        if kind == "tiny_vae":
            return [name for name in TINY_VAES if self.tiny_vae(name)]
        if kind == PICTURE_FOLDERS:
            above = (PurePosixPath(name).parents for name in self.list("input"))
            return sorted({str(folder) for folders in above for folder in folders} - {"."})
        suffixes = INPUT_KINDS.get(kind, MODEL_SUFFIXES)
        found: dict[str, None] = dict.fromkeys(name for of, name in self._added if of == kind)
        for directory in self.directories(kind):
            for path in _walk(directory):
                if path.suffix.lower() in suffixes:
                    found.setdefault(path.relative_to(directory).as_posix())
        return sorted(found)

    def kinds(self) -> list[str]:
        return [*DIRECTORIES]

    def find(self, kind: str, name: str) -> Path | None:
        """The file of that name: exactly, with its letters composed otherwise (NFC, NFD), or as the only file
        of that bare name in a subfolder."""
        if kind == "tiny_vae":
            found = self.tiny_vae(name)
            return None if found is None else found[1]
        if (kind, name) in self._added:
            return self._added[kind, name]
        wanted = _relative(name)
        if wanted is None:
            return None
        there = Path.is_dir if kind == PICTURE_FOLDERS else Path.is_file
        for directory in self.directories(kind):
            path = directory / wanted
            if there(path):
                return path
        if kind == PICTURE_FOLDERS:
            return None
        listed, text = self.list(kind), normalize("NFC", wanted.as_posix())
        matches = {n for n in listed if normalize("NFC", n) == text}
        if not matches and len(wanted.parts) == 1:
            matches = {n for n in listed if normalize("NFC", PurePosixPath(n).name) == text}
        return self._listed(kind, matches.pop()) if len(matches) == 1 else None

    def _listed(self, kind: str, name: str) -> Path | None:
        paths = (directory / name for directory in self.directories(kind))
        return next((path for path in paths if path.is_file()), None)

    def training_files(self, name: str) -> list[str]:
        """The pictures and captions in a folder of PICTURE_FOLDERS, as names of the input folder."""
        folder = self.find(PICTURE_FOLDERS, name)
        if folder is None or self.input_dir is None:
            return []
        wanted = IMAGE_SUFFIXES | CAPTION_SUFFIXES
        files = (path for path in _walk(folder) if path.suffix.lower() in wanted)
        return sorted(path.relative_to(self.input_dir).as_posix() for path in files)

    def resolve(self, kind: str, name: str) -> Path:
        """Like `find`, but a name that is not there is an error that says what comes close.

        Raises FileNotListed."""
        path = self.find(kind, name)
        if path is None:
            raise FileNotListed(kind, name, self.nearest(kind, name), self.directories(kind))
        return path

    def tiny_vae(self, name: str) -> tuple[Path, Path] | None:
        """Encoder and decoder of a tiny autoencoder, where both are there."""
        encoder, decoder = (self.approximation(f"{name}_{half}") for half in ("encoder", "decoder"))
        return None if encoder is None or decoder is None or name not in TINY_VAES else (encoder, decoder)

    def approximation(self, stem: str) -> Path | None:
        """The file "STEM.suffix" in the folder "vae_approx", as safetensors where there are several."""
        names = [name for name in self.list("vae_approx") if name.startswith(f"{stem}.")]
        names.sort(key=lambda name: not name.endswith(".safetensors"))
        return self.find("vae_approx", names[0]) if names else None

    def nearest(self, kind: str, name: str, count: int = 3) -> tuple[str, ...]:
        return nearest_files(name, self.list(kind), count)


def nearest_files(name: str, listed: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """The files whose names come closest, compared without their folders and suffixes: those of the same
    name, else those of which one holds the other, then those that are spelled alike."""
    wanted, by_stem = _stem(name), dict[str, list[str]]()
    for file in listed:
        by_stem.setdefault(_stem(file), []).append(file)
    holding = [
        one for one in by_stem if any(len(a) > 2 and a in b for a, b in ((wanted, one), (one, wanted)))
    ]
    holding.sort(key=lambda one: abs(len(one) - len(wanted)))
    alike = get_close_matches(wanted, by_stem, n=count, cutoff=0.5)
    close = [wanted] if wanted in by_stem else dict.fromkeys([*holding, *alike])
    return tuple(file for stem in close for file in by_stem[stem])[:count]


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem.lower()


def read_extra_paths(path: Path) -> ExtraPaths:
    """The directories of an `extra_model_paths.yaml`. Relative paths are relative to the file.

    A kind's paths are lines of one text (`loras: |`), or a list; kinds without a section around them are read
    as one. Raises InputError where the file is not such a YAML: paths that YAML reads as something else than
    text (`true`, 2024, a date) are none."""
    try:
        found = yaml.safe_load(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    if found is None:
        return ExtraPaths()
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected sections such as `comfyui:`, found {type(found).__name__}")
    sections: list[dict[str, object]] = []
    loose: dict[str, object] = {}
    for key, value in cast("dict[object, object]", found).items():
        if isinstance(value, dict):
            sections.append({str(k): v for k, v in cast("dict[object, object]", value).items()})
        elif str(key) in _SETTINGS or OLD_KINDS.get(str(key), str(key)) in DIRECTORIES:
            loose[str(key)] = value
        elif value is not None:
            raise InputError(
                f"{path}: {key} is no section; expected `{key}:` with lines such as `  loras: DIR`"
            )
    result = ExtraPaths()
    for section in [loose, *sections] if loose else sections:
        result = result.then(_section(path, section))
    return result


_SETTINGS = ("base_path", "is_default")


def _section(path: Path, section: Mapping[str, object]) -> ExtraPaths:
    base = path.parent / _expanded(_text(path, "base_path", section.get("base_path")) or ".")
    found: dict[str, tuple[Path, ...]] = {}
    for key, value in section.items():
        if key not in _SETTINGS:
            kind = OLD_KINDS.get(key, key)
            found[kind] = (
                *found.get(kind, ()),
                *(base / _expanded(line) for line in _lines(path, key, value)),
            )
    if not _is_default(path, section.get("is_default")):
        return ExtraPaths(last=found)
    return ExtraPaths(first={kind: paths[::-1] for kind, paths in found.items()})  # each goes to the front


def _lines(path: Path, key: str, value: object) -> list[str]:
    """The paths of one kind: lines of a text, entries of a list, or none."""
    entries = cast("list[object]", value) if isinstance(value, list) else [value]
    if any(isinstance(entry, dict | list) for entry in entries):
        raise InputError(
            f"{path}: {key} holds more than paths; expected `{key}: DIR`, or `{key}: |` and lines"
        )
    lines = (line for entry in entries for line in _text(path, key, entry).splitlines())
    return [text for line in lines if (text := line.strip()) and not text.startswith("#")]


def _text(path: Path, key: str, value: object) -> str:
    """What should be text, or is not there at all."""
    if value is not None and not isinstance(value, str):
        raise InputError(
            f"{path}: {key} holds {value!r} ({type(value).__name__}), which is no path; expected "
            f"`{key}: DIR`, in quotes where a folder is called so"
        )
    return value or ""


def _is_default(path: Path, value: object) -> bool:
    word = str(value or False).lower()
    if word not in ("true", "1", "yes", "false", "0", "no"):
        raise InputError(f"{path}: is_default holds {value!r}; expected true or false")
    return word in ("true", "1", "yes")


def _expanded(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))


def default_roots() -> list[Path]:
    """The model folders that are used when none is named."""
    named = os.environ.get("LORALOOM_MODELS")
    if named:
        return [Path(p) for p in named.split(os.pathsep) if p]
    candidates = [Path("models"), Path("ComfyUI/models"), Path.home() / "ComfyUI/models"]
    return [c for c in candidates if c.is_dir()][:1] or [Path("models")]


def model_folders(
    models: list[Path] | None, extra_paths: list[Path] | None = None, input_dir: Path | None = None
) -> ModelFolders:
    """The folders that the options mean. A ComfyUI folder itself is taken for its models/.

    An `extra_model_paths.yaml` beside the models folder is read, as ComfyUI does."""
    roots = [_models_of(root) for root in (models or default_roots())]
    files = [f for root in roots if (f := root.parent / "extra_model_paths.yaml").is_file()]
    files += extra_paths or []
    extra = ExtraPaths()
    for file in files:
        extra = extra.then(read_extra_paths(file))
    return ModelFolders(roots, extra, input_dir)


def _models_of(root: Path) -> Path:
    inner = root / "models"
    return inner if inner.is_dir() and not (root / "checkpoints").is_dir() else root


def is_shown(name: str) -> bool:
    """Whether lists show a file of this name: none that is hidden, none that is no UTF-8 (old archives have
    such), by which no workflow and no request could call it."""
    return not name.startswith(".") and not _SURROGATES.search(name)


_SURROGATES = re.compile("[\ud800-\udfff]")
LINKS_TO_ONE_FOLDER = 16
"""How often one folder is listed under the names of different links; beyond that, links are a maze."""


def _walk(directory: Path) -> Iterator[Path]:
    """The files below a directory, through links too; a link to a folder above itself is not entered."""
    visits: Counter[str] = Counter()
    waiting: deque[tuple[Path, frozenset[str]]] = deque([(directory, frozenset())])
    while waiting:
        current, above = waiting.popleft()
        real = os.path.realpath(current)
        if real in above or visits[real] >= LINKS_TO_ONE_FOLDER:
            continue
        visits[real] += 1
        try:
            entries = [entry for entry in os.scandir(current) if is_shown(entry.name)]
        except OSError:
            continue
        for entry in entries:
            if os.path.isdir(entry.path):  # where links end in a circle, DirEntry raises
                waiting.append((Path(entry.path), above | {real}))
            elif os.path.isfile(entry.path):  # no pipe, and no link to nothing
                yield Path(entry.path)


_MAX_NAME = 4000


def _relative(name: str) -> PurePosixPath | None:
    """A file name as a safe relative path, or None where it is not one."""
    text = name.replace("\\", "/")
    path = PurePosixPath(text)
    if not path.parts or "\0" in text or path.is_absolute() or ".." in path.parts:
        return None
    if len(text) > _MAX_NAME or any(len(os.fsencode(part)) > 255 for part in path.parts):
        return None  # no file system has such a name, and asking for it is an error
    drive = re.fullmatch(r"[A-Za-z]:", path.parts[0]) or (os.name == "nt" and ":" in text)
    return None if drive else path
