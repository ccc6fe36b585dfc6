"""A server for tests whose files all lie in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraloom.folders import ModelFolders
from loraloom.jobs.lock import FolderLock
from loraloom.jobs.notices import Limits
from loraloom.server.app import Setup
from loraloom.server.run import serve
from loraloom.server.settings import ServerSettings
from loraloom.workflow.schema import NodeSchema


def model_folders(folder: Path) -> ModelFolders:
    return ModelFolders([folder / "models"], input_dir=folder / "input")


def serve_in(
    folder: Path,
    schemas: Mapping[str, NodeSchema],
    worker: str,
    worker_settings: dict[str, Any],
    settings: Mapping[str, Any],
    **more: Any,
) -> None:
    """Serve until stopped. worker: the runner of the workers' processes; settings: of `ServerSettings`; more:
    of `Setup`."""
    lock = FolderLock(folder / "user")
    lock.acquire(3.0)
    places = {f"{kind}_dir": folder / kind for kind in ("output", "input", "temp", "user")}
    serve(
        Setup(
            settings=ServerSettings(**places, **settings),
            folders=model_folders(folder),
            schemas=schemas,
            worker=worker,
            worker_settings=worker_settings,
            limits=Limits(),
            **more,
        )
    )
