"""Nodes that enlarge pictures with a trained model."""

from __future__ import annotations

from typing import Annotated

from loraloom.engine.node import Files, NodeRun, Socket, node
from loraloom.models.upscaling import Upscaler, open_upscaler
from loraloom.nodes.sockets import Image
from loraloom.runtime.services import services
from loraloom.weights.capacity import clear_about_memory

UpscaleModel = Annotated[Upscaler, Socket("UPSCALE_MODEL")]
MODULE = "comfy_extras.nodes_upscale_model"


@node(
    "UpscaleModelLoader", category="loaders", display_name="Load Upscale Model", v3=True, python_module=MODULE
)
def load_upscale_model(model_name: Annotated[str, Files("upscale_models")], *, run: NodeRun) -> UpscaleModel:
    """Open an upscale model such as Real-ESRGAN, a safetensors file."""
    return open_upscaler(services(run).folders.resolve("upscale_models", model_name))


@node(
    "ImageUpscaleWithModel",
    category="image/upscaling",
    display_name="Upscale Image (using Model)",
    v3=True,
    python_module=MODULE,
)
def upscale_with_model(upscale_model: UpscaleModel, image: Image, *, run: NodeRun) -> Image:
    """Enlarge pictures by the factor of an upscale model."""
    with clear_about_memory("enlarging this picture"):
        return upscale_model(image[..., :3], services(run).memory)
