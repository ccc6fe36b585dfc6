"""The components of a checkpoint as its header alone shows them. No torch."""

from __future__ import annotations

from pathlib import Path

from loraloom.lora.component import Component, ComponentName
from loraloom.models.encoder import checkpoint_shapes
from loraloom.models.parts.lora_names import text_aliases
from loraloom.models.recognition import recognise
from loraloom.weights.header import read_header


def base_components(path: Path) -> dict[ComponentName, Component]:
    """The diffusion network of a file and, where the file holds them, its text encoders."""
    header = read_header(path)
    found = recognise(header)
    family = found.family.name
    components: dict[ComponentName, Component] = {
        "model": Component(family, found.shapes, dict(found.family.lora_aliases(found.shapes)))
    }
    parts = checkpoint_shapes(header)
    if parts:
        shapes = {name: shape for part in parts.values() for name, shape in part.items()}
        components["clip"] = Component(family, shapes, text_aliases(parts))
    return components
