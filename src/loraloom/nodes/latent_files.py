"""Latents in files of ComfyUI's `.latent` format (safetensors)."""

from __future__ import annotations

import json
from typing import Annotated

import torch
from safetensors.torch import save

from loraloom.engine.node import Files, NodeResult, NodeRun, node
from loraloom.errors import InputError
from loraloom.nodes.picture_files import HIDDEN, input_path
from loraloom.nodes.sockets import Latent, LatentValue
from loraloom.runtime.services import services
from loraloom.weights.tensor_file import TensorFile

OLD_SCALE = 1.0 / 0.18215
"""Files without the version key hold latents as SD1.5's network sees them."""


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
