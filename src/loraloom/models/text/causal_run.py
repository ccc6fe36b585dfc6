"""A language model on the tokens of a prompt, with pictures in the places of some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.models.encoder import Vision
from loraloom.models.recipe import Use
from loraloom.models.residency.activations import sequence_numbers
from loraloom.models.text.causal import CausalText, Seen
from loraloom.models.text.clip import Encoded
from loraloom.models.text.pictures import SeenPicture, positions, see
from loraloom.models.text.tokens import Chunk, Picture, TokenRules, Tokens

Reserve: TypeAlias = Callable[[int], None]
"""Makes room for so many numbers on the device."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A prompt as a language model reads it.

    vectors: (T, D). pieces: for each token of the prompt, a picture or 1 for a single vector."""

    vectors: Tensor
    pieces: tuple[SeenPicture | int, ...]

    @property
    def pictures(self) -> tuple[SeenPicture, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, SeenPicture))

    def length_of(self, count: int) -> int:
        """How many vectors the first `count` tokens are."""
        return sum(piece if isinstance(piece, int) else len(piece.tokens) for piece in self.pieces[:count])

    def places(self) -> tuple[tuple[int, int], ...]:
        """The first vector of each picture, and their number."""
        return tuple(
            (self.length_of(index), len(piece.tokens))
            for index, piece in enumerate(self.pieces)
            if isinstance(piece, SeenPicture)
        )

    def seen(self) -> Seen | None:
        """Where pictures stand, and what is added there; None without pictures."""
        pictures = self.pictures
        if not pictures:
            return None
        is_picture = [
            torch.full((piece if isinstance(piece, int) else len(piece.tokens),), not isinstance(piece, int))
            for piece in self.pieces
        ]
        deep = tuple(torch.cat(parts) for parts in zip(*(p.deep for p in pictures), strict=True))
        device = self.vectors.device
        return Seen(positions(self.pieces).to(device), torch.cat(is_picture)[None].to(device), deep)


@dataclass(frozen=True, slots=True)
class CausalRun:
    """A language model about to run: as a recipe uses it, and where. reserve: makes room for so many numbers
    before it computes."""

    module: CausalText
    use: Use
    rules: TokenRules
    device: torch.device
    vision: Vision | None = None
    reserve: Reserve = lambda numbers: None

    def __call__(self, tokens: Tokens) -> Encoded:
        (chunk,) = tokens
        read = self.read(chunk)
        mask = self._mask(chunk, read)
        is_padded = bool((mask == 0).any()) and self.use.masks
        self.reserve(sequence_numbers(self.module.model, 1, len(read.vectors), states=len(self.use.layers)))
        hidden = self.module(
            read.vectors[None],
            mask.to(self.device) if is_padded else None,
            self.use.layers,
            self.use.norm_layer,
            self._seen(read, mask),
        )
        return Encoded(hidden, mask=mask if self.use.gives_mask else None, pictures=read.places())

    def _seen(self, read: Read, mask: Tensor) -> Seen | None:
        """Pictures, and where tokens stand if that is not simply one after the other."""
        seen, place = read.seen(), self.use.padding_place
        if place is None or not bool((mask == 0).any()):
            return seen
        places = positions(read.pieces).to(self.device).masked_fill(mask.to(self.device) == 0, place)
        if seen is None:
            return Seen(places, torch.zeros_like(mask, dtype=torch.bool, device=self.device))
        return replace(seen, positions=places)

    def read(self, chunk: Chunk) -> Read:
        """The vectors of tokens, embeddings and pictures. Embeddings of another width are left out, and
        padding takes their room at the end."""
        pad = self.rules.pad
        numbers = [t.token if isinstance(t.token, int) else pad for t in chunk]
        table = self.module.embed(torch.tensor([*numbers, pad], device=self.device))
        rows: list[Tensor] = []
        pieces: list[SeenPicture | int] = []
        for index, weighted in enumerate(chunk):
            token = weighted.token
            if isinstance(token, Picture):
                seen = self._see(token)
                rows.append(seen.tokens.to(table))
                pieces.append(seen)
                continue
            if isinstance(token, int):
                rows.append(table[index : index + 1])
            elif token.shape[-1] == table.shape[-1]:
                rows.append(token.to(table)[None] * self.module.vector_scale)
            else:
                continue
            pieces.append(1)
        missing = len(chunk) - len(pieces)
        rows += [table[-1:]] * missing
        pieces += [1] * missing
        return Read(torch.cat(rows), tuple(pieces))

    def _see(self, picture: Picture) -> SeenPicture:
        if self.module.visual is None or self.vision is None:
            raise ModelFileError(
                "the prompt has a picture, and the text encoder's file holds no vision tower"
            )
        tower = self.module.visual

        def reserve(patches: Tensor) -> None:
            self.reserve(sequence_numbers(tower, 1, len(patches)) + patches.numel())

        return see(tower, picture.pixels, self.vision, self.device, reserve)

    def _mask(self, chunk: Chunk, read: Read) -> Tensor:
        """(1, T) 1 up to where padding begins."""
        tokens = [t.token for t in chunk]
        words = next(
            (i for i, t in enumerate(tokens) if isinstance(t, int) and t == self.rules.pad), len(tokens)
        )
        mask = torch.zeros(1, len(read.vectors), dtype=torch.long)
        mask[:, : read.length_of(words)] = 1
        return mask
