"""Captions → network inputs, from a cache where text encoders are frozen, with gradients where they learn."""

from __future__ import annotations

from pathlib import Path

import torch
from blake3 import blake3
from torch import nn

from loraloom.folders import ModelFolders
from loraloom.models.encoder import encoder_kind
from loraloom.models.handles import TextEncoders
from loraloom.models.recipe import Use
from loraloom.models.text.clip import Encoded
from loraloom.models.text.encode import combined, encode_prompt, recipe_of
from loraloom.models.text.tokens import Chunk, rules_for, tokenize
from loraloom.sampling.types import Cond
from loraloom.training.model import LiveText
from loraloom.training.storage import read_tensors, write_tensors


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

    def _load(self, caption: str) -> Cond:
        name = blake3(f"{self._key}\0{caption}".encode()).hexdigest()
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            (cond,), _ = encode_prompt(self._live, self._text, _unweighted(caption), ModelFolders(()))
            tensors = {"context": cond.context}
            if cond.pooled is not None:
                tensors["pooled"] = cond.pooled
            write_tensors(path, tensors)
        tensors = read_tensors(path)
        return Cond(tensors["context"], tensors.get("pooled"))


def _unweighted(caption: str) -> str:
    """A caption whose brackets are letters, not weights, as trainers read it."""
    return caption.replace("\\", "\\\\").replace("(", r"\(").replace(")", r"\)")


class LearningText:
    """Conditionings computed anew each time, with gradients."""

    def __init__(self, live: LiveText, text: TextEncoders) -> None:
        self._live, self._text = live, text

    def __call__(self, caption: str) -> Cond:
        """The conditioning of a caption, through adapters in the encoders."""
        recipe = recipe_of(self._text)
        return combined(recipe, {use.key: self._run(use, caption) for use in recipe.uses})

    def _run(self, use: Use, caption: str) -> Encoded:
        module: nn.Module = self._live.modules[use.encoder]
        part = self._text.part(use.encoder)
        assert part is not None
        rules = rules_for(encoder_kind(use.encoder), use, part.weights)
        chunks = tokenize(_unweighted(caption), rules, lambda name: None).chunks
        numbers = torch.tensor([_numbers(chunk) for chunk in chunks], device=self._live.device)
        ends = torch.tensor([row.index(rules.end) for row in numbers.tolist()], device=self._live.device)
        (layer,) = use.layers
        out: Encoded = module(module.embed(numbers), ends, layer, use.norm_layer)  # pyright: ignore[reportCallIssue]
        first = [None if t is None else t[:1] for t in (out.pooled, out.projected)]
        return Encoded(out.hidden.flatten(0, 1)[None], *first)


def _numbers(chunk: Chunk) -> list[int]:
    return [weighted.token for weighted in chunk if isinstance(weighted.token, int)]
