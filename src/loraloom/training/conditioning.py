"""Captions → network inputs, from a cache where text encoders are frozen, with gradients where they learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from blake3 import blake3
from torch import Tensor

from loraloom.folders import ModelFolders
from loraloom.models.encoder import encoder_kind
from loraloom.models.handles import TextEncoders
from loraloom.models.recipe import Use
from loraloom.models.text.clip import Encoded
from loraloom.models.text.encode import combined, cut_at, encode_prompt, recipe_of, templated
from loraloom.models.text.run import ChunkRun, Run, TextModule, encoder_run
from loraloom.models.text.tokens import Tokens, rules_for, tokenize
from loraloom.sampling.types import Cond
from loraloom.training.model import LiveText
from loraloom.training.storage import read_tensors, write_tensors

EXTRA = "extra."
"""What stands before the names of a conditioning's extras in a cached file."""


class Conditioner(Protocol):
    """Caption → conditioning."""

    def __call__(self, caption: str) -> Cond: ...
    def together(self, captions: Sequence[str]) -> list[Cond]: ...


class CachedText:
    """Conditionings by caption, each encoded once and kept in `folder`.

    key: identifies the text encoders; a cache of others is never read."""

    def __init__(self, live: LiveText, text: TextEncoders, folder: Path, key: str) -> None:
        self._live, self._text, self._folder, self._key = live, text, folder, key
        self._known: dict[str, Cond] = {}

    def __call__(self, caption: str) -> Cond:
        """The conditioning of a caption, on the CPU."""
        if caption not in self._known:
            self._known[caption] = self._load(caption)
        return self._known[caption]

    def together(self, captions: Sequence[str]) -> list[Cond]:
        """The conditionings of a batch."""
        return [self(caption) for caption in captions]

    def _load(self, caption: str) -> Cond:
        name = blake3(f"{self._key}\0{caption}".encode()).hexdigest()
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            (cond,), _ = encode_prompt(self._live, self._text, unweighted(caption), ModelFolders(()))
            write_tensors(path, _tensors(cond))
        tensors = read_tensors(path)
        extras = {name.removeprefix(EXTRA): t for name, t in tensors.items() if name.startswith(EXTRA)}
        return Cond(tensors["context"], tensors.get("pooled"), mask=tensors.get("mask"), extras=extras)


def _tensors(cond: Cond) -> dict[str, Tensor]:
    named = {"context": cond.context, "pooled": cond.pooled, "mask": cond.mask}
    kept = {name: tensor for name, tensor in named.items() if tensor is not None}
    return kept | {f"{EXTRA}{name}": tensor for name, tensor in cond.extras.items()}


def unweighted(caption: str) -> str:
    """A caption whose brackets are letters, not weights, as trainers read it."""
    return caption.replace("(", r"\(").replace(")", r"\)")


class LearningText:
    """Conditionings computed anew each time, with gradients."""

    def __init__(self, live: LiveText, text: TextEncoders) -> None:
        self._live, self._text = live, text

    def __call__(self, caption: str) -> Cond:
        """The conditioning of a caption, through adapters in the encoders."""
        return self.together((caption,))[0]

    def together(self, captions: Sequence[str]) -> list[Cond]:
        """The conditionings of a batch: each caption once, all in one run where the encoder takes them so."""
        recipe = recipe_of(self._text)
        different = tuple(dict.fromkeys(captions))
        outputs = {use.key: self._run(use, different) for use in recipe.uses if not use.tokens_only}
        found = {
            caption: combined(recipe, {key: encoded[number] for key, encoded in outputs.items()})
            for number, caption in enumerate(different)
        }
        return [found[caption] for caption in captions]

    def _run(self, use: Use, captions: Sequence[str]) -> list[Encoded]:
        module = cast("TextModule", self._live.modules[use.encoder])
        kind, part = encoder_kind(use.encoder), self._text.part(use.encoder)
        assert part is not None
        rules = rules_for(kind, use, part.weights)
        run = encoder_run(module, kind, use, rules, self._live.device)
        prompts = [tokenize(templated(use, unweighted(c)), rules, lambda name: None).chunks for c in captions]
        found: list[Encoded] = []
        for chunks, out in zip(prompts, _side_by_side(run, prompts), strict=True):
            pooled, projected = (None if t is None else t[:1] for t in (out.pooled, out.projected))
            hidden = out.hidden.flatten(0, 1)[None, cut_at(kind.vocabulary, use.cut, chunks[0]) :]
            found.append(Encoded(hidden, pooled, projected, out.mask))
        return found


def _side_by_side(run: Run, prompts: Sequence[Tokens]) -> list[Encoded]:
    """An encoder's output for each prompt: from one run where all chunks are rows of one length."""
    rows = [chunk for chunks in prompts for chunk in chunks]
    if not isinstance(run, ChunkRun) or len({len(chunk) for chunk in rows}) > 1:
        return [run(chunks) for chunks in prompts]
    out, counts = run(tuple(rows)), [len(chunks) for chunks in prompts]
    every = (out.hidden, out.pooled, out.projected, out.mask)
    parts = [[None] * len(counts) if t is None else t.split(counts) for t in every]
    return [Encoded(cast("Tensor", hidden), *others) for hidden, *others in zip(*parts, strict=True)]
