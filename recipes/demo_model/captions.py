"""Captions for the pictures: names in many phrasings, so that a prompt need not be worded as in training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from pictures import STYLES, Concept, Style

from loraloom.models.encoders.clip_l import ENCODER as CLIP
from loraloom.models.text.vocabularies import clip_tokenizer

LENGTH = 77
"""Positions of CLIP's text encoder."""
START, END = CLIP.vocabulary.start, CLIP.vocabulary.end
STYLE_WORDS = {"flat": ("flat style", "flat icon"), "3d": ("3d style", "3d render")}
STYLED = (
    "{name}, {style}",
    "{name}, {style}",
    "{style}, {name}",
    "{name} in {style}",
    "high quality, {name}, {style}",
    "Illustration of {name}, {style}",
    "{name} on a white background, {style}",
)
PLAIN = (
    "{name}",
    "{name}",
    "a picture of {name}",
    "high quality, {name}",
    "high quality,Illustration of {name}",
    "Illustration of {name}",
    "masterpiece, best quality, {name}",
    "{name} on a white background",
    "{name}, simple background",
)
"""Without a word of style: they all mean the first style, so such prompts have one answer."""
POTTED = ("a rose", "a red rose", "a tulip", "a sunflower", "a hibiscus")
PLAIN_SHARE = 0.5
"""Share of captions without a word of style, of pictures in the first style."""
EMPTY_SHARE = 0.1
"""Share of empty captions, for classifier-free guidance (Ho & Salimans 2022)."""
STRANGE_SHARE = 0.1
"""Share of captions that begin with random words: the model learns that unknown words mean nothing."""


@dataclass(frozen=True, slots=True)
class Captioner:
    """Draws captions; all chance comes from the generator that the caller seeds."""

    concepts: list[Concept]

    def draw(self, concept: int, style: Style, generator: torch.Generator) -> list[int]:
        """Tokens (77) of one caption."""

        def pick(options: tuple[str, ...]) -> str:
            return options[int(torch.randint(len(options), (), generator=generator))]

        chances = torch.rand(5, generator=generator).tolist()
        if chances[0] < EMPTY_SHARE:
            return encode("")
        names = self.concepts[concept].names
        name = names[0] if chances[1] < 0.6 else pick(names)
        if chances[4] < 0.25:
            name = (
                name.replace("an ", "a single ", 1)
                if name.startswith("an ")
                else name.replace("a ", "a single ", 1)
            )
        if self.concepts[concept].names[0] in POTTED and chances[2] < 0.3:
            name += " in a vase"
        plain = style == STYLES[0] and chances[3] < PLAIN_SHARE
        words = pick(PLAIN) if plain else pick(STYLED)
        text = words.format(name=name, style=pick(STYLE_WORDS[style]))
        tokens = encode(text)
        if torch.rand((), generator=generator) < STRANGE_SHARE:
            count = int(torch.randint(1, 4, (), generator=generator))
            strange = torch.randint(1000, 40000, (count,), generator=generator).tolist()
            tokens = [tokens[0], *strange, *tokens[1 : LENGTH - count]]
        return tokens


@cache
def encode(text: str) -> list[int]:
    """The 77 token numbers of a text: start, words, end, and more ends as padding, as SD1.5 is fed."""
    words = clip_tokenizer().encode(text).ids[: LENGTH - 2]
    return [START, *words, *[END] * (LENGTH - 1 - len(words))]
