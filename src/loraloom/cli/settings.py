"""Options that several commands share, and where model folders are looked for by default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from loraloom.folders import ModelFolders, read_extra_paths

ModelsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        help="Folder laid out like ComfyUI's models/ (may be given several times). "
        "Default: $LORALOOM_MODELS, ./models, ./ComfyUI/models or ~/ComfyUI/models.",
        show_default=False,
    ),
]
ExtraPathsOption = Annotated[
    list[Path] | None,
    typer.Option("--extra-model-paths", help="ComfyUI's extra_model_paths.yaml.", show_default=False),
]


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
