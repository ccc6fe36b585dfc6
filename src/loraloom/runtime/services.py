"""What nodes need of the world around them: folders, memory, settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.folders import ModelFolders
from loraloom.runtime.encodings import Encodings
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.runtime.output_files import OutputFolder
from loraloom.runtime.previews import Previews

if TYPE_CHECKING:
    from loraloom.engine.node import NodeRun
    from loraloom.models.residency.memory import Memory


@dataclass(frozen=True, slots=True)
class Settings:
    """metadata: pictures carry their workflow. max_pixels: the largest picture that is read."""

    metadata: bool = True
    max_pixels: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Services:
    """One session's folders, resident models and settings. training: where trainings keep their states."""

    folders: ModelFolders
    memory: Memory
    loras: LoraShelf
    output: OutputFolder
    temp: OutputFolder
    input_dir: Path
    training: Path
    settings: Settings = field(default_factory=Settings)
    previews: Previews = field(default_factory=Previews)
    encodings: Encodings = field(default_factory=Encodings)


def services(run: NodeRun) -> Services:
    """The session's services, from a node's run context."""
    found = run.services
    if not isinstance(found, Services):
        raise TypeError(f"these nodes run with Services, not {type(found).__name__}")
    found.memory.tell = run.warn
    return found
