"""The loaders of ComfyUI-GGUF, under its names: workflows on GGUF files have them in ComfyUI's own's place.

Files of either kind open with either loader; a GGUF file is recognised by what is in it.
"""

from __future__ import annotations

from typing import Annotated

from loraloom.engine.node import Choice, NodeRun, node
from loraloom.nodes import loaders
from loraloom.nodes.loaders import DUAL_TYPES, SINGLE_TYPES, DiffusionModelFile, TextEncoderFile
from loraloom.nodes.sockets import Clip, Model

MODULE = "custom_nodes.ComfyUI-GGUF"
CATEGORY = "bootleg"
DequantType = Annotated[str, Choice(("default", "target", "float32", "float16", "bfloat16"))]


@node("UnetLoaderGGUF", category=CATEGORY, display_name="Unet Loader (GGUF)", python_module=MODULE)
def load_gguf_model(unet_name: DiffusionModelFile, *, run: NodeRun) -> Model:
    """Open a diffusion model from a GGUF file; its weights stay quantised in memory."""
    return loaders.load_diffusion_model(unet_name, "default", run=run)


@node(
    "UnetLoaderGGUFAdvanced",
    category=CATEGORY,
    display_name="Unet Loader (GGUF/Advanced)",
    python_module=MODULE,
)
def load_gguf_model_advanced(
    unet_name: DiffusionModelFile,
    dequant_dtype: DequantType = "default",
    patch_dtype: DequantType = "default",
    patch_on_device: bool = False,
    *,
    run: NodeRun,
) -> Model:
    """As UnetLoaderGGUF; weights are always widened in float32 and LoRAs kept in full precision."""
    del dequant_dtype, patch_dtype, patch_on_device
    return loaders.load_diffusion_model(unet_name, "default", run=run)


@node("CLIPLoaderGGUF", category=CATEGORY, display_name="CLIPLoader (GGUF)", python_module=MODULE)
def load_gguf_clip(
    clip_name: TextEncoderFile, type: Annotated[str, Choice(tuple(SINGLE_TYPES.split()))], *, run: NodeRun
) -> Clip:
    """Open one text encoder, from a GGUF file or another, for the family named by `type`."""
    return loaders.load_clip(clip_name, type, run=run)


@node("DualCLIPLoaderGGUF", category=CATEGORY, display_name="DualCLIPLoader (GGUF)", python_module=MODULE)
def load_gguf_dual_clip(
    clip_name1: TextEncoderFile,
    clip_name2: TextEncoderFile,
    type: Annotated[str, Choice(tuple(DUAL_TYPES.split()))],
    *,
    run: NodeRun,
) -> Clip:
    """Open two text encoders, from GGUF files or others, for the family named by `type`."""
    return loaders.load_dual_clip(clip_name1, clip_name2, type, run=run)


@node("TripleCLIPLoaderGGUF", category=CATEGORY, display_name="TripleCLIPLoader (GGUF)", python_module=MODULE)
def load_gguf_triple_clip(
    clip_name1: TextEncoderFile, clip_name2: TextEncoderFile, clip_name3: TextEncoderFile, *, run: NodeRun
) -> Clip:
    """Open the three text encoders of Stable Diffusion 3, from GGUF files or others."""
    return loaders.load_triple_clip(clip_name1, clip_name2, clip_name3, run=run)


@node(
    "QuadrupleCLIPLoaderGGUF",
    category=CATEGORY,
    display_name="QuadrupleCLIPLoader (GGUF)",
    python_module=MODULE,
)
def load_gguf_quadruple_clip(
    clip_name1: TextEncoderFile,
    clip_name2: TextEncoderFile,
    clip_name3: TextEncoderFile,
    clip_name4: TextEncoderFile,
    *,
    run: NodeRun,
) -> Clip:
    """As QuadrupleCLIPLoader."""
    return loaders.load_quadruple_clip(clip_name1, clip_name2, clip_name3, clip_name4, run=run)
