"""Model folders as ComfyUI lays them out, so that an existing ComfyUI folder works as it is.

A folder *kind* ("loras", "text_encoders", …) is looked for under every models root, under its present and
its older directory name, and in the places that an `extra_model_paths.yaml` adds. Names are shown with
forward slashes; both separators are understood. No name leads out of its folder: absolute names, drive
letters and `..` are refused. Links that the user made inside a model folder are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import cast

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
INPUT_KINDS = {"input": IMAGE_SUFFIXES, "input_latents": frozenset({".latent"})}
"""Kinds that live in the input folder, each with the suffixes that it lists."""

TINY_VAES = ("taesd", "taesdxl", "taesd3", "taef1")
"""Autoencoders of two files, "NAME_encoder" and "NAME_decoder", in the folder "vae_approx"; kind "tiny_vae"
lists those that are there, found by the decoder."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells whether a file has been replaced."""

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        stat = path.stat()
        return cls(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


class FileNotListed(InputError):
    """A name that no folder of its kind holds; `nearest` are names that come close."""

    def __init__(self, kind: str, name: str, nearest: tuple[str, ...], searched: tuple[Path, ...]) -> None:
        self.kind, self.name, self.nearest = kind, name, nearest
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        where = ", ".join(str(p) for p in searched) or "no folder (give one with --models)"
        super().__init__(f"{name!r} is not in the {kind} folder. Searched {where}.{hint}")


class ModelFolders:
    """The model files (and input pictures) that a run may use.

    roots: folders like ComfyUI's `models/`, in order of precedence.
    extra: kind → further directories (from `extra_model_paths.yaml`).
    input_dir: where LoadImage finds its pictures; listed as kind "input".
    """

    def __init__(
        self,
        roots: Iterable[Path],
        extra: Mapping[str, tuple[Path, ...]] | None = None,
        input_dir: Path | None = None,
    ) -> None:
        self.roots = tuple(Path(root) for root in roots)
        self.extra = dict(extra or {})
        self.input_dir = input_dir

    def directories(self, kind: str) -> tuple[Path, ...]:
        """The existing directories of a kind, in order of precedence."""
        kind = OLD_KINDS.get(kind, kind)
        if kind in INPUT_KINDS:
            candidates = [self.input_dir] if self.input_dir is not None else []
        else:
            names = DIRECTORIES.get(kind, (kind,))
            candidates = [*self.extra.get(kind, ()), *(r / n for r in self.roots for n in names)]
        return tuple(d for d in candidates if d.is_dir())

    def list(self, kind: str) -> list[str]:
        """Names of the files of a kind, relative to their directory, sorted, each once."""
        if kind == "tiny_vae":
            return [name for name in TINY_VAES if self.tiny_vae(name)]
        suffixes = INPUT_KINDS.get(kind, MODEL_SUFFIXES)
        found: dict[str, None] = {}
        for directory in self.directories(kind):
            for path in _walk(directory):
                if path.suffix.lower() in suffixes:
                    found.setdefault(path.relative_to(directory).as_posix())
        return sorted(found)

    def kinds(self) -> list[str]:
        return [*DIRECTORIES]

    def find(self, kind: str, name: str) -> Path | None:
        """The file of that name: exactly, or as the only file of that bare name in a subfolder."""
        if kind == "tiny_vae":
            found = self.tiny_vae(name)
            return None if found is None else found[1]
        wanted = _relative(name)
        if wanted is None:
            return None
        for directory in self.directories(kind):
            path = directory / wanted
            if path.is_file():
                return path
        if len(wanted.parts) > 1:
            return None
        matches = {n for n in self.list(kind) if PurePosixPath(n).name == wanted.name}
        return self.find(kind, matches.pop()) if len(matches) == 1 else None

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
        names = self.list(kind)
        by_stem = {PurePosixPath(n).stem.lower(): n for n in names}
        stem = PurePosixPath(name.replace("\\", "/")).stem.lower()
        return tuple(by_stem[s] for s in get_close_matches(stem, by_stem, n=count, cutoff=0.5))


def read_extra_paths(path: Path) -> dict[str, tuple[Path, ...]]:
    """Kind → directories of an `extra_model_paths.yaml`. Relative paths are relative to the file.

    Raises InputError when the file is not such a YAML."""
    try:
        sections = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(sections, dict):
        raise InputError(f"{path}: expected sections such as `comfyui:`, found {type(sections).__name__}")
    first: dict[str, list[Path]] = {}
    later: dict[str, list[Path]] = {}
    for section in cast("dict[str, object]", sections).values():
        if not isinstance(section, dict):
            continue
        entries = {str(k): v for k, v in cast("dict[object, object]", section).items()}
        base = path.parent / os.path.expandvars(os.path.expanduser(str(entries.pop("base_path", "."))))
        chosen = first if entries.pop("is_default", False) else later
        for kind, value in entries.items():
            lines = [line.strip() for line in str(value).splitlines() if line.strip()]
            kind = OLD_KINDS.get(kind, kind)
            chosen.setdefault(kind, []).extend(base / os.path.expanduser(line) for line in lines)
    return {
        k: (*first.get(k, ()), *later.get(k, ())) for k in (*first, *(k for k in later if k not in first))
    }


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
    files = list(extra_paths or [])
    files += [f for root in roots if (f := root.parent / "extra_model_paths.yaml").is_file()]
    extra: dict[str, tuple[Path, ...]] = {}
    for file in files:
        for kind, directories in read_extra_paths(file).items():
            extra[kind] = (*extra.get(kind, ()), *directories)
    return ModelFolders(roots, extra, input_dir)


def _models_of(root: Path) -> Path:
    inner = root / "models"
    return inner if inner.is_dir() and not (root / "checkpoints").is_dir() else root


def _walk(directory: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for current, subdirectories, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            subdirectories.clear()
            continue
        seen.add(real)
        subdirectories[:] = sorted(d for d in subdirectories if not d.startswith("."))
        yield from (Path(current, f) for f in files if not f.startswith("."))


def _relative(name: str) -> PurePosixPath | None:
    """A file name as a safe relative path, or None where it is not one."""
    text = name.replace("\\", "/")
    path = PurePosixPath(text)
    if not path.parts or "\0" in text or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return None
    return path
