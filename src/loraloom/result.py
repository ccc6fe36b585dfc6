"""What a run gave: pictures, receipts, warnings, timings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loraloom.engine.events import (
    Event,
    NodeFinished,
    NodeNote,
    NodesCached,
    NodeStarted,
    NodeWarning,
    receipt_in,
)
from loraloom.workflow.graph import JSON

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a node wrote. kind: "output" or "temp". width, height: 0 where it is no picture."""

    node: str
    path: Path
    kind: str
    width: int = 0
    height: int = 0

    def to_json(self) -> dict[str, JSON]:
        return {"node": self.node, "path": str(self.path), "width": self.width, "height": self.height}


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one workflow.

    receipts: one per application of a LoRA (`lora.receipt.Receipt` as plain data, with "node" and "name").
    timings: seconds by node id, and "total".
    cached: nodes whose results were kept from an earlier run.
    fast: what `--fast` did, by "node" and "name", as it is "said".
    batches: of sampling together with other runs: "rows" of the largest batch, and what became of "loras".
    """

    outputs: tuple[OutputFile, ...]
    receipts: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    timings: Mapping[str, float]
    ui: Mapping[str, Mapping[str, JSON]] = field(default_factory=lambda: dict[str, Mapping[str, JSON]]())
    cached: tuple[str, ...] = ()
    batches: tuple[Mapping[str, JSON], ...] = ()
    fast: tuple[Mapping[str, JSON], ...] = ()

    @property
    def images(self) -> list[Image]:
        """The pictures in the output folder, opened (Pillow)."""
        from PIL.Image import open as open_picture

        pictures: list[Image] = []
        for output in self.outputs:
            if output.kind == "output" and output.width:
                with open_picture(output.path) as picture:
                    picture.load()
                    pictures.append(picture)
        return pictures

    def to_json(self) -> dict[str, JSON]:
        """The object that `--json` prints."""
        return {
            "status": "done",
            "outputs": [o.to_json() for o in self.outputs],
            "loras": cast("list[JSON]", list(self.receipts)),
            "warnings": list(self.warnings),
            **({"fast": [dict(one) for one in self.fast]} if self.fast else {}),
            "timings": {k: round(v, 4) for k, v in self.timings.items()},
            "error": None,
        }


class Recorder:
    """Gathers a run's events into a `Run`."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._begun = time.monotonic()
        self._started: dict[str, float] = {}
        self._timings: dict[str, float] = {}
        self._outputs: list[OutputFile] = []
        self._receipts: list[dict[str, Any]] = []
        self._warnings: list[str] = []
        self._ui: dict[str, Mapping[str, JSON]] = {}
        self._cached: list[str] = []
        self._batches: list[Mapping[str, JSON]] = []
        self._fast: list[Mapping[str, JSON]] = []

    def see(self, event: Event) -> None:
        match event:
            case NodesCached(nodes):
                self._cached += nodes
            case NodeStarted(node_id):
                self._started[node_id] = time.monotonic()
            case NodeNote(_, "batch", payload) if isinstance(payload, dict):
                self._batches.append(payload)
            case NodeNote(_, "fast", payload) if isinstance(payload, dict):
                self._fast.append(payload)
            case NodeNote(_, kind, payload):
                receipt = receipt_in(kind, payload)
                if receipt is not None:
                    self._receipts.append(receipt)
            case NodeWarning(node_id, message):
                self._warnings.append(f"node {node_id}: {message}")
            case NodeFinished(node_id):
                if node_id in self._started:
                    self._timings[node_id] = time.monotonic() - self._started[node_id]
                if event.ui:
                    self._ui[node_id] = event.ui
                    self._outputs += self._files(node_id, event.ui)
            case _:
                pass

    def warn(self, message: str) -> None:
        self._warnings.append(message)

    def run(self) -> Run:
        timings = {**self._timings, "total": time.monotonic() - self._begun}
        return Run(
            tuple(self._outputs),
            tuple(self._receipts),
            tuple(dict.fromkeys(self._warnings)),
            timings,
            self._ui,
            tuple(self._cached),
            tuple(self._batches),
            tuple(self._fast),
        )

    def _files(self, node_id: str, ui: Mapping[str, JSON]) -> list[OutputFile]:
        found: list[OutputFile] = []
        for entries in ui.values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and "filename" in entry and entry.get("type") in self._folders:
                    kind = str(entry["type"])
                    path = self._folders[kind] / str(entry.get("subfolder", "")) / str(entry["filename"])
                    found.append(OutputFile(node_id, path, kind, *_size(path)))
        return found


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, UnidentifiedImageError):
        return 0, 0
