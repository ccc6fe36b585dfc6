"""Tokenizers that encoder files carry with them, as tensors of bytes."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from loraloom.errors import ModelFileError
from loraloom.models.text.vocabularies import word_pattern
from loraloom.weights.source import WeightSource

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tiktoken import Encoding

MAX_BYTES = 1 << 27


@dataclass(frozen=True, slots=True)
class Numbers:
    """What encoding a text gives: token numbers."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Tekken:
    """Mistral's byte-level BPE."""

    encoding: Encoding

    def encode(self, text: str) -> Numbers:
        return Numbers(self.encoding.encode(text, allowed_special="all"))

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """Google's SentencePiece (Kudo and Richardson 2018), without start or end."""

    processor: SentencePieceProcessor

    def encode(self, text: str) -> Numbers:
        return Numbers(self.processor.encode(text, out_type=int, add_bos=False, add_eos=False))

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)


@lru_cache(maxsize=4)
def tekken_tokenizer(weights: WeightSource, name: str) -> Tekken:
    """The tokenizer that a tensor holds as Mistral's JSON: ranks behind the special tokens. Words are split
    by Llama 3's rule, as ComfyUI does, not by the pattern in the file."""
    from tiktoken import Encoding

    with weights.naming():
        try:
            stated: dict[str, Any] = json.loads(_bytes(weights, name))
            config = stated["config"]
            first = int(config["default_num_special_tokens"])
            count = int(config["default_vocab_size"]) - first
            ranks = {
                base64.b64decode(entry["token_bytes"], validate=True): int(entry["rank"]) + first
                for entry in stated["vocab"]
                if int(entry["rank"]) < count
            }
            special = {str(entry["token_str"]): int(entry["rank"]) for entry in stated["special_tokens"]}
            return Tekken(
                Encoding("tekken", pat_str=word_pattern(3), mergeable_ranks=ranks, special_tokens=special)
            )
        except (ValueError, LookupError, TypeError, binascii.Error) as error:
            raise ModelFileError(f"{name} is not a tekken tokenizer: {error}") from error


@lru_cache(maxsize=4)
def sentencepiece_tokenizer(weights: WeightSource, name: str) -> SentencePiece:
    """The tokenizer that a tensor holds as SentencePiece's model."""
    from sentencepiece import SentencePieceProcessor

    with weights.naming():
        try:
            return SentencePiece(SentencePieceProcessor(model_proto=_bytes(weights, name)))
        except RuntimeError as error:
            raise ModelFileError(f"{name} is not a SentencePiece tokenizer: {error}") from error


def _bytes(weights: WeightSource, name: str) -> bytes:
    if name not in weights:
        raise ModelFileError(f"holds no tokenizer: the tensor {name!r} is missing")
    if weights.dtypes[name] != torch.uint8 or weights.stored_bytes(name) > MAX_BYTES:
        raise ModelFileError(f"{name} is not a tokenizer: expected bytes, at most {MAX_BYTES >> 20} MiB")
    return weights.stored(name).numpy().tobytes()
