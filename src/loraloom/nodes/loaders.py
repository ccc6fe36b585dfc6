"""Nodes that open model files. They read headers only: weights are read when a model is first used."""

from __future__ import annotations

from typing import Annotated

from loraloom.engine.node import Blocked, Choice, Files, NodeRun, Options, node
from loraloom.errors import InputError
from loraloom.folders import TINY_VAES
from loraloom.models.checkpoint import (
    open_autoencoder,
    open_checkpoint,
    open_diffusion_model,
    open_text_encoders,
    open_tiny_autoencoder,
)
from loraloom.models.handles import Autoencoder, TextEncoders
from loraloom.nodes.sockets import CheckpointFile, Clip, Model, Vae
from loraloom.runtime.services import services
from loraloom.weights.capacity import multiplies_fp8

DiffusionModelFile = Annotated[str, Files("diffusion_models")]
TextEncoderFile = Annotated[str, Files("text_encoders")]
Device = Annotated[str, Choice(("default", "cpu")), Options({"advanced": True})]


@node("CheckpointLoaderSimple", category="loaders", display_name="Load Checkpoint")
def load_checkpoint(
    ckpt_name: CheckpointFile, *, run: NodeRun
) -> tuple[Model, Clip | Blocked, Vae | Blocked]:
    """Open a checkpoint: a diffusion model with its text encoders and autoencoder in one file."""
    model, clip, vae = open_checkpoint(services(run).folders.resolve("checkpoints", ckpt_name))
    return (model, *parts_of(ckpt_name, clip, vae))


def parts_of(
    name: str, clip: TextEncoders | None, vae: Autoencoder | None
) -> tuple[Clip | Blocked, Vae | Blocked]:
    """The parts of a checkpoint beside its network, or what to do where it has none."""
    return (
        clip or Blocked(f"{name} holds no text encoder: load it with CLIPLoader or DualCLIPLoader"),
        vae or Blocked(f"{name} holds no autoencoder: load it with VAELoader"),
    )


@node("VAELoader", category="loaders", display_name="Load VAE")
def load_vae(
    vae_name: Annotated[str, Files("vae", "tiny_vae", extra=("pixel_space",))], *, run: NodeRun
) -> Vae:
    """Open an autoencoder from a file of its own, or a tiny one from its two files."""
    folders = services(run).folders
    tiny = folders.tiny_vae(vae_name)
    if tiny is not None:
        return open_tiny_autoencoder(vae_name, *tiny)
    if vae_name in TINY_VAES:
        raise InputError(
            f"{vae_name} needs {vae_name}_encoder.safetensors and {vae_name}_decoder.safetensors in the "
            "folder vae_approx"
        )
    return open_autoencoder(folders.resolve("vae", vae_name))


@node("UNETLoader", category="advanced/loaders", display_name="Load Diffusion Model")
def load_diffusion_model(
    unet_name: DiffusionModelFile,
    weight_dtype: Annotated[str, Choice(("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"))],
    *,
    run: NodeRun,
) -> Model:
    """Open a diffusion model from a file of its own, optionally keeping its weights in fp8."""
    device = services(run).memory.device
    if weight_dtype == "fp8_e4m3fn_fast" and not multiplies_fp8(device):
        run.warn(
            f"{weight_dtype} is read as fp8_e4m3fn: weights are stored in 8 bits and widened when they are"
            f" used; {device.type} multiplies nothing in 8 bits here"
        )
    return open_diffusion_model(services(run).folders.resolve("diffusion_models", unet_name), weight_dtype)


SINGLE_TYPES = (
    "stable_diffusion stable_cascade sd3 stable_audio mochi ltxv pixart cosmos lumina2 wan hidream chroma ace"
    " omnigen2 qwen_image hunyuan_image flux2 ovis longcat_image cogvideox lens pixeldit ideogram4 boogu"
    " krea2 joyimage mage minimax yue2 flux3 moss_image fibo2"
)
DUAL_TYPES = (
    "sdxl sd3 flux hunyuan_video hidream hunyuan_image hunyuan_video_15 kandinsky5 kandinsky5_image ltxv"
    " newbie ace"
)


@node("CLIPLoader", category="advanced/loaders", display_name="Load CLIP")
def load_clip(
    clip_name: TextEncoderFile,
    type: Annotated[str, Choice(tuple(SINGLE_TYPES.split()))],
    device: Device | None = None,
    *,
    run: NodeRun,
) -> Clip:
    """Open one text encoder for the family named by `type`."""
    return _text_encoders(run, type, clip_name)


@node("DualCLIPLoader", category="advanced/loaders", display_name="DualCLIPLoader")
def load_dual_clip(
    clip_name1: TextEncoderFile,
    clip_name2: TextEncoderFile,
    type: Annotated[str, Choice(tuple(DUAL_TYPES.split()))],
    device: Device | None = None,
    *,
    run: NodeRun,
) -> Clip:
    """Open two text encoders, in any order, for the family named by `type`."""
    return _text_encoders(run, type, clip_name1, clip_name2)


@node("TripleCLIPLoader", category="advanced/loaders", v3=True, python_module="comfy_extras.nodes_sd3")
def load_triple_clip(
    clip_name1: TextEncoderFile, clip_name2: TextEncoderFile, clip_name3: TextEncoderFile, *, run: NodeRun
) -> Clip:
    """Open the three text encoders of Stable Diffusion 3, in any order."""
    return _text_encoders(run, "sd3", clip_name1, clip_name2, clip_name3)


@node("QuadrupleCLIPLoader", category="advanced/loaders", v3=True, python_module="comfy_extras.nodes_hidream")
def load_quadruple_clip(
    clip_name1: TextEncoderFile,
    clip_name2: TextEncoderFile,
    clip_name3: TextEncoderFile,
    clip_name4: TextEncoderFile,
    *,
    run: NodeRun,
) -> Clip:
    """The loader of HiDream's four text encoders, which are not run: says why, and what to do."""
    return _text_encoders(run, "hidream", clip_name1, clip_name2, clip_name3, clip_name4)


def _text_encoders(run: NodeRun, kind: str, *names: str) -> TextEncoders:
    folders = services(run).folders
    return open_text_encoders(tuple(folders.resolve("text_encoders", name) for name in names), kind)
