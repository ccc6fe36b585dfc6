"""Files → handles. Only headers are read; meanwhile a thread imports what computing will need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from loraloom.errors import ModelFileError
from loraloom.models.autoencoder import find_autoencoder
from loraloom.models.encoder import encoder_kind
from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders
from loraloom.models.known_model import KnownModel
from loraloom.models.library_class import import_ahead
from loraloom.models.names import Regrouping
from loraloom.models.picture_encoders import (
    REDUX,
    USO,
    PictureEncoder,
    StyleModel,
    check_model_patch,
    check_style_model,
    find_picture_encoder,
    no_picture_encoder,
)
from loraloom.models.recognition import looks_like, recognise
from loraloom.models.text_sources import checkpoint_parts, text_encoders
from loraloom.models.tiny_autoencoder import tiny_kind
from loraloom.weights.source import Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile

FilePath: TypeAlias = "str | os.PathLike[str]"

WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
"""What UNETLoader offers."""


def open_checkpoint(path: FilePath) -> tuple[DiffusionModel, TextEncoders | None, Autoencoder | None]:
    """An all-in-one file: the network, and its text encoders and autoencoder where the file holds them."""
    file = TensorFile(path)
    model = _diffusion_model(file)
    recipe = model.family.recipe(model.weights.shapes)
    parts = checkpoint_parts(file, recipe.encoders)
    text = _imported(TextEncoders(recipe.name, parts)) if parts else None
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
    return _imported(text_encoders([TensorFile(path) for path in paths], kind))


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
    kind = tiny_kind(name)
    return Autoencoder(kind, _buildable(kind, source))


def open_picture_encoder(path: FilePath) -> PictureEncoder:
    """A file with the vision half of SigLIP or CLIP, or with both halves of CLIP."""
    file = TensorFile(path)
    found = _picture_encoder(file, "", "visual.")
    if found is None:
        raise no_picture_encoder(file.header)
    return found


def open_checkpoint_with_eyes(
    path: FilePath,
) -> tuple[DiffusionModel, TextEncoders | None, Autoencoder | None, PictureEncoder | None]:
    """As `open_checkpoint`, and the picture encoder that files for unCLIP hold."""
    return (*open_checkpoint(path), _picture_encoder(TensorFile(path), "embedder.model.visual."))


def _picture_encoder(file: TensorFile, *prefixes: str) -> PictureEncoder | None:
    found = find_picture_encoder(file.header, *prefixes)
    if found is None:
        return None
    kind, tensors = found
    source = WeightSource({t.name: (Piece(file, t.key, t.rows, t.transposed),) for t in tensors})
    return PictureEncoder(kind, _buildable(kind, source))


def open_style_model(path: FilePath) -> StyleModel:
    """A file with what turns a picture encoder's states into tokens of a prompt (Flux Redux)."""
    file = TensorFile(path)
    check_style_model(file.header)
    return StyleModel(REDUX, _buildable(REDUX, WeightSource.of_file(file)))


def open_model_patch(path: FilePath) -> StyleModel:
    """A file with USO's style projector."""
    file = TensorFile(path)
    check_model_patch(file.header)
    return StyleModel(USO, _buildable(USO, WeightSource.of_file(file)))


def _imported(text: TextEncoders) -> TextEncoders:
    import_ahead(path for part in text.parts for path in encoder_kind(part.role).classes)
    return text


def _buildable(kind: KnownModel, source: WeightSource) -> WeightSource:
    """The source, whose network's class is imported meanwhile; what cannot be built is refused here."""
    with source.naming():
        source.worked_out(kind.blueprint)
    import_ahead([kind.module.path])
    return source


def _diffusion_model(file: TensorFile) -> DiffusionModel:
    found = recognise(file.header)
    source = WeightSource.of_file(file, found.prefix)
    if found.regrouping is not None:
        source = _regrouped(file, found.prefix, found.regrouping)
    return DiffusionModel(found.family, _buildable(found.family, source))


def _autoencoder(file: TensorFile) -> Autoencoder | None:
    found = find_autoencoder(file.header)
    if found is None:
        return None
    source = _regrouped(file, found.prefix, found.pieces)
    return Autoencoder(found.kind, _buildable(found.kind, source))


def _regrouped(file: TensorFile, prefix: str, pieces: Regrouping) -> WeightSource:
    """Native weights of the tensors, or rows of them, that make them up."""
    return WeightSource(
        {
            native: tuple(Piece(file, prefix + name, rows) for name, rows in parts)
            for native, parts in pieces.items()
        }
    )
