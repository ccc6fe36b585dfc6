"""Empty latents, and latents in files of ComfyUI's `.latent` format (safetensors)."""

from __future__ import annotations

import json
from typing import Annotated

import torch
from safetensors.torch import save

from loraloom.engine.node import Files, NodeResult, NodeRun, Number, node
from loraloom.errors import InputError
from loraloom.nodes.picture_files import HIDDEN, input_path
from loraloom.nodes.sockets import BatchSize, Latent, LatentValue
from loraloom.runtime.services import services
from loraloom.weights.tensor_file import TensorFile

OLD_SCALE = 1.0 / 0.18215
"""Files without the version key hold latents as SD1.5's network sees them."""


@node("EmptyLatentImage", category="latent", display_name="Empty Latent Image")
def empty_latent(
    width: Annotated[int, Number(min=16, max=16384, step=8)] = 512,
    height: Annotated[int, Number(min=16, max=16384, step=8)] = 512,
    batch_size: BatchSize = 1,
) -> Latent:
    """Latents of nothing, 4 channels; width and height are in pixels."""
    return LatentValue(samples=torch.zeros(batch_size, 4, height // 8, width // 8))


@node(
    "EmptySD3LatentImage", category="latent/sd3", display_name=None, v3=True,
    python_module="comfy_extras.nodes_sd3",
)  # fmt: skip
def empty_sd3_latent(
    width: Annotated[int, Number(min=16, max=16384, step=16)] = 1024,
    height: Annotated[int, Number(min=16, max=16384, step=16)] = 1024,
    batch_size: BatchSize = 1,
) -> Latent:
    """Latents of nothing, 16 channels, for SD3 and Flux; width and height are in pixels."""
    return LatentValue(samples=torch.zeros(batch_size, 16, height // 8, width // 8))


@node("SaveLatent", category="_for_testing", display_name="SaveLatent", output_node=True, hidden=HIDDEN)
def save_latent(samples: Latent, filename_prefix: str = "latents/ComfyUI", *, run: NodeRun) -> NodeResult:
    """Write latents to the output folder."""
    metadata: dict[str, str] = {}
    if services(run).settings.metadata:
        metadata["prompt"] = json.dumps(run.prompt)
        metadata |= {key: json.dumps(value) for key, value in run.extra_pnginfo.items()}
    tensors = {"latent_tensor": samples["samples"].contiguous(), "latent_format_version_0": torch.tensor([])}
    file = services(run).output.save(filename_prefix, ".latent", save(tensors, metadata))
    return NodeResult(ui={"latents": [file.as_ui()]})


@node("LoadLatent", category="_for_testing", display_name="LoadLatent")
def load_latent(latent: Annotated[str, Files("input_latents")], *, run: NodeRun) -> Latent:
    """Read latents from a `.latent` file of the input folder."""
    file = TensorFile(input_path(services(run), latent))
    if "latent_tensor" not in file.header.tensors:
        raise InputError(f"{latent!r} holds no `latent_tensor`: it is not a file that SaveLatent wrote")
    samples = file.read("latent_tensor", torch.float32)
    if samples.ndim < 4:
        shape = tuple(samples.shape)
        raise InputError(f"{latent!r}: expected latents (batch, channels, height, width), found {shape}")
    scale = 1.0 if "latent_format_version_0" in file.header.tensors else OLD_SCALE
    return LatentValue(samples=samples * scale)
