"""Files → handles. Only headers are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from loraloom.errors import ModelFileError
from loraloom.models.autoencoder_layout import autoencoder_blueprint, is_autoencoder, native_name
from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders
from loraloom.models.recognition import looks_like, recognise
from loraloom.models.text_sources import checkpoint_parts, text_encoders
from loraloom.models.tiny_autoencoder import LATENTS, tiny_blueprint
from loraloom.weights.header import Header
from loraloom.weights.source import Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile

FilePath: TypeAlias = "str | os.PathLike[str]"

AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.", "")

WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
"""What UNETLoader offers."""


def open_checkpoint(path: FilePath) -> tuple[DiffusionModel, TextEncoders | None, Autoencoder | None]:
    """An all-in-one file: the network, and its text encoders and autoencoder where the file holds them."""
    file = TensorFile(path)
    model = _diffusion_model(file)
    parts = checkpoint_parts(file, model.family.prompt.encoders)
    text = TextEncoders(model.family.prompt.name, parts) if parts else None
    return model, text, _autoencoder(file)


def open_diffusion_model(path: FilePath, weight_dtype: str = "default") -> DiffusionModel:
    """A file with the diffusion network alone (or more, which is left alone).

    weight_dtype: the type to store the weights in (`WEIGHT_DTYPES`)."""
    model = _diffusion_model(TensorFile(path))
    if weight_dtype not in WEIGHT_DTYPES:
        raise ModelFileError(f"no such weight_dtype: {weight_dtype!r}; use one of {', '.join(WEIGHT_DTYPES)}")
    return model if weight_dtype == "default" else model.with_option("weight_dtype", weight_dtype)


def open_text_encoders(paths: tuple[FilePath, ...], kind: str) -> TextEncoders:
    """Text encoders from one or several files, in any order: each is recognised by its names and shapes.

    kind: the `type` of the loader ("stable_diffusion", "sdxl", "flux", …)."""
    return text_encoders([TensorFile(path) for path in paths], kind)


def open_autoencoder(path: FilePath) -> Autoencoder:
    """A VAE file, or the autoencoder within a checkpoint."""
    file = TensorFile(path)
    vae = _autoencoder(file)
    if vae is None:
        raise ModelFileError(f"{Path(path)}: no autoencoder (VAE): {looks_like(file.header)}")
    return vae


def open_tiny_autoencoder(name: str, encoder: FilePath, decoder: FilePath) -> Autoencoder:
    """A tiny autoencoder ("taesd", "taesdxl", …) from the files of its halves."""
    halves = (("encoder", TensorFile(encoder)), ("decoder", TensorFile(decoder)))
    source = WeightSource.joined(
        WeightSource.of_file(file, rename=lambda key, half=half: f"{half}.{key}") for half, file in halves
    )
    with source.naming():
        tiny_blueprint(source.shapes)
    return Autoencoder(source, tiny_latent=LATENTS[name])


def _diffusion_model(file: TensorFile) -> DiffusionModel:
    found = recognise(file.header)
    source = WeightSource.of_file(file, found.prefix)
    if found.regrouping is not None:
        entries = {
            native: tuple(Piece(file, found.prefix + name, rows) for name, rows in pieces)
            for native, pieces in found.regrouping.items()
        }
        source = WeightSource(entries)
    with source.naming():
        found.family.blueprint(source.shapes)  # what cannot be built is refused before anything is loaded
    return DiffusionModel(found.family, source)


def _autoencoder(file: TensorFile) -> Autoencoder | None:
    for prefix in AUTOENCODER_PREFIXES:
        names = [name[len(prefix) :] for name in file.header.tensors if name.startswith(prefix)]
        levels = _diffusers_levels(file.header, prefix)
        if is_autoencoder(names):
            source = WeightSource.of_file(file, prefix, _autoencoder_name)
        elif levels:
            source = WeightSource.of_file(file, prefix, lambda name, n=levels: native_name(name, n))
        else:
            continue
        with source.naming():
            autoencoder_blueprint(source.shapes)
        return Autoencoder(source)
    return None


def _autoencoder_name(name: str) -> str | None:
    """Native names as they are; parts that other code trained beside the autoencoder are left out."""
    return name if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")) else None


def _diffusers_levels(header: Header, prefix: str) -> int:
    """Levels of an autoencoder in diffusers' layout; 0 where there is none."""
    count = 0
    while f"{prefix}decoder.up_blocks.{count}.resnets.0.conv1.weight" in header.tensors:
        count += 1
    return count if f"{prefix}encoder.conv_in.weight" in header.tensors else 0
