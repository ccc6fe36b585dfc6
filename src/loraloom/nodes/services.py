"""What nodes need of the world around them: folders, memory, settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraloom.folders import ModelFolders
from loraloom.nodes.output_files import OutputFolder

if TYPE_CHECKING:
    from loraloom.engine.node import NodeRun
    from loraloom.models.memory import Memory

Compat = Literal["trainer", "comfyui"]


@dataclass(frozen=True, slots=True)
class Settings:
    """compat: which result to give where ComfyUI computes a LoRA differently from its trainer.
    strict_lora: any LoRA key without a place is an error. metadata: pictures carry their workflow."""

    compat: Compat = "trainer"
    strict_lora: bool = False
    metadata: bool = True
    max_pixels: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Services:
    """One session's folders, resident models and settings."""

    folders: ModelFolders
    memory: Memory
    output: OutputFolder
    temp: OutputFolder
    input_dir: Path
    settings: Settings = field(default_factory=Settings)


def services(run: NodeRun) -> Services:
    """The session's services, from a node's run context."""
    found = run.services
    if not isinstance(found, Services):
        raise TypeError(f"these nodes run with Services, not {type(found).__name__}")
    return found
