"""Encoded prompts, kept while a session lives: a text is encoded once for a state of the text encoders.

Another strength of a LoRA that leaves the text encoders alone, another workflow with the same prompt, and the
same (often empty) negative prompt on every branch cost nothing then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TypeAlias

from torch import Tensor

from loraloom.folders import ModelFolders
from loraloom.models.handles import TextEncoders
from loraloom.models.text.embeddings import PromptWarning, embedding_names, embedding_state
from loraloom.sampling.types import Conditioning

Encoded: TypeAlias = "tuple[Conditioning, tuple[PromptWarning, ...]]"

MOST_BYTES = 64 << 20


class Encodings:
    """The latest encoded prompts, as many as fit into `most` bytes."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()

    def get(self, key: Hashable, encode: Callable[[], Encoded]) -> Encoded:
        """What was encoded under this key, or is now."""
        if key not in self._kept:
            self._kept[key] = encode()
        self._kept.move_to_end(key)
        found = self._kept[key]
        while self.nbytes > self._most:
            self._kept.popitem(last=False)
        return found

    @property
    def nbytes(self) -> int:
        return sum(_bytes(conditioning) for conditioning, _ in self._kept.values())

    def clear(self) -> None:
        self._kept.clear()


def encoding_key(
    clip: TextEncoders, text: str | Mapping[str, str], folders: ModelFolders, *how: Hashable
) -> Hashable:
    """Equal where encoding gives the same: the encoders with the LoRAs on them, the text, and the files of
    the embeddings that it names. how: whatever else matters."""
    texts = {"": text} if isinstance(text, str) else dict(text)
    names = dict.fromkeys(name for own in texts.values() for name in embedding_names(own))
    return (
        clip.kind,
        clip.parts,
        tuple(use.signature for use in clip.stack),
        clip.clip_skip,
        clip.options,
        clip.embeddings,
        isinstance(text, str),
        tuple(sorted(texts.items())),
        tuple((name, embedding_state(folders, name)) for name in names),
        how,
    )


def _bytes(conditioning: Conditioning) -> int:
    tensors: list[Tensor] = []
    for cond in conditioning:
        tensors += [cond.context, *(t for t in (cond.pooled, *cond.extras.values()) if t is not None)]
    return sum(tensor.nbytes for tensor in tensors)
