"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        help="Folder laid out like ComfyUI's models/ (may be given several times). "
        "Default: $LORALOOM_MODELS, ./models, ./ComfyUI/models or ~/ComfyUI/models.",
        show_default=False,
    ),
]
CustomNodesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--custom-nodes",
        metavar="DIR",
        help="Folder of node packs written to ComfyUI's contract (may be given several times). "
        "Their code runs with all your rights.",
        show_default=False,
    ),
]
ExtraPathsOption = Annotated[
    list[Path] | None,
    typer.Option("--extra-model-paths", help="ComfyUI's extra_model_paths.yaml.", show_default=False),
]
