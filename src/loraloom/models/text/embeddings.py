"""Textual inversions: files of learned vectors that a prompt names as `embedding:NAME`.

Known layouts, all safetensors: one tensor under any name (`emb_params`, the placeholder word, …), one tensor
per encoder (`clip_l`, `clip_g`, `t5xxl`), or the vectors that trainers bundle into a LoRA
(`bundle_emb.WORD.string_to_param.*`, `bundle_emb.WORD.clip_l`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.folders import ModelFolders
from loraloom.models.text.prompt import EmbeddingPart, parse_prompt
from loraloom.weights.header import pickle_advice
from loraloom.weights.tensor_file import TensorFile

ANY_ENCODER = "*"

SAFE_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".pt", ".bin", ".pth", ".ckpt", ".pkl")
MAX_VECTORS = 4096


@dataclass(frozen=True, slots=True)
class PromptWarning:
    """Something in a prompt that has no effect, for the user to know. `name` is what was written after
    `embedding:`."""

    name: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class BundledEmbeddings:
    """Vectors that a LoRA brings along. words: word → encoder (or `ANY_ENCODER`) → (N, D)."""

    words: Mapping[str, Mapping[str, Tensor]]

    def find(self, name: str, encoder: str) -> Tensor | None:
        """The vectors (N, D), float32, of a word for an encoder; None where there are none."""
        found = self.words.get(name, {})
        vectors = found.get(encoder, found.get(ANY_ENCODER))
        return None if vectors is None else vectors.float().reshape(-1, vectors.shape[-1])


def find_embedding_file(folders: ModelFolders, name: str) -> Path | None:
    """The file of an embedding; the suffix may be left out, and so may the subfolder. A pickle's name means
    the safetensors file that it was converted to, where there is one.

    Raises ModelFileError when there is one, but of a kind that can run code when opened."""
    if not name:
        return None
    stem = next((name.removesuffix(s) for s in PICKLE_SUFFIXES if name.lower().endswith(s)), None)
    converted = () if stem is None else tuple(stem + suffix for suffix in SAFE_SUFFIXES)
    for candidate in (*converted, *(name + suffix for suffix in ("", *SAFE_SUFFIXES, *PICKLE_SUFFIXES))):
        path = folders.find("embeddings", candidate)
        if path is None:
            continue
        if path.suffix.lower() not in SAFE_SUFFIXES:
            raise ModelFileError(
                f"embedding:{name} is the file {path}, a {path.suffix or 'suffix-less'} file: such files can"
                f" run code when opened and are never loaded: {pickle_advice(path)}"
            )
        return path
    return None


def embedding_names(text: str) -> list[str]:
    """The names that a prompt gives embeddings, without the commas that end the word."""
    return [part.name.rstrip(",") for part in parse_prompt(text) if isinstance(part, EmbeddingPart)]


def embedding_state(folders: ModelFolders, name: str) -> tuple[str | int, ...]:
    """What tells one state of an embedding's file from another; empty where there is no such file."""
    path = find_embedding_file(folders, name)
    if path is None:
        return ()
    found = FileIdentity.of(path)
    return found.path, *found.state


def read_embedding(path: Path, encoder: str) -> Tensor:
    """The vectors (N, D), float32, that a file holds for an encoder ("clip_l", "clip_g", "t5xxl").

    A file that does not name encoders has the same vectors for each."""
    file = TensorFile(path)
    keys = tuple(file.header.tensors)
    if not keys:
        raise ModelFileError(f"{path}: holds no tensors; expected an embedding")
    if encoder in keys:
        chosen = (encoder,)
    else:
        bundled = [k for k in keys if k.startswith("bundle_emb.")]
        chosen = tuple(k for k in bundled if k.endswith(".string_to_param.*"))
        chosen = chosen or tuple(k for k in bundled if k.endswith(f".{encoder}")) or keys[:1]
    vectors = [_vectors(file, key) for key in chosen]
    if len({v.shape[1] for v in vectors}) != 1 or sum(len(v) for v in vectors) > MAX_VECTORS:
        found = ", ".join(f"{key} {list(v.shape)}" for key, v in zip(chosen, vectors, strict=True))
        raise ModelFileError(f"{path}: not an embedding: expected vectors of one width, found {found}")
    return torch.cat(vectors)


def _vectors(file: TensorFile, key: str) -> Tensor:
    shape = file.header.tensors[key].shape
    if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > MAX_VECTORS):
        raise ModelFileError(
            f"{file.path}: not an embedding: expected a tensor (vectors, width), found {key!r} {list(shape)}"
        )
    return file.read(key, torch.float32).reshape(-1, shape[-1])


class EmbeddingFinder:
    """The embeddings that one prompt names, for one encoder, each file read once.

    encoder: "clip_l", "clip_g" or "t5xxl". width: that of the encoder's own token vectors. A file of
    another width yields its vectors all the same (the encoder leaves them out) and a warning.
    bundled: what the LoRAs on the encoders bring along; it comes before the folder, the last LoRA first."""

    def __init__(
        self,
        folders: ModelFolders,
        encoder: str,
        width: int,
        bundled: Sequence[BundledEmbeddings] = (),
    ) -> None:
        self._folders, self._encoder, self._width = folders, encoder, width
        self._bundled = tuple(reversed(bundled))
        self._read: dict[str, Sequence[Tensor] | None] = {}
        self.warnings: list[PromptWarning] = []

    def __call__(self, name: str) -> Sequence[Tensor] | None:
        if name not in self._read:
            self._read[name] = self._find(name)
        return self._read[name]

    def _find(self, name: str) -> Sequence[Tensor] | None:
        brought = (bundle.find(name, self._encoder) for bundle in self._bundled)
        vectors = next((found for found in brought if found is not None), None)
        if vectors is None:
            path = find_embedding_file(self._folders, name)
            if path is None:
                return None
            vectors = read_embedding(path, self._encoder)
        if vectors.shape[1] != self._width:
            self.warnings.append(
                PromptWarning(
                    name,
                    f"embedding:{name} is {vectors.shape[1]} wide and was made for another model: the"
                    f" {self._encoder} text encoder of this one is {self._width} wide. It has no effect.",
                )
            )
        return tuple(vectors)

    def unknown(self, name: str) -> PromptWarning:
        near = self._folders.nearest("embeddings", name)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        return PromptWarning(
            name, f"embedding:{name} is not in the embeddings folder and was left out.{hint}"
        )
