"""A checkpoint's weights, ready to be read one by one."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from loraloom.lora.component import Component, ComponentName
from loraloom.lora.extract import CheckpointWeights
from loraloom.models.checkpoint import open_checkpoint


def checkpoint_weights(path: Path) -> CheckpointWeights:
    """The diffusion network and the text encoders of a file."""
    model, text, _ = open_checkpoint(path)
    family = model.family.name
    components: dict[ComponentName, Component] = {
        "model": Component(family, model.weights.shapes, model.lora_aliases())
    }
    parts = text.parts if text is not None else ()
    if text is not None:
        shapes = {name: shape for part in parts for name, shape in part.weights.shapes.items()}
        components["clip"] = Component(family, shapes, text.lora_aliases())

    def read(component: ComponentName, weight: str) -> Tensor:
        if component == "model":
            return model.weights.read(weight)
        return next(part.weights for part in parts if weight in part.weights).read(weight)

    return CheckpointWeights(components, read)
