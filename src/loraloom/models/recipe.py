"""How a family makes a conditioning of a prompt: which encoders it uses, how, and how their outputs are
joined.

A recipe is plain data and imports no torch. Which one text encoders are used by follows from the `type` of
the loader together with what the files are: `choose`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from loraloom.errors import ModelFileError

Layer: TypeAlias = "int | None"
"""States after so many blocks: 0 are the token vectors; negative numbers count from the end, -1 after all.
None: after all, with the final norm."""

Cut: TypeAlias = Literal["nothing", "system", "opening"]
"""What a conditioning leaves out at its front: nothing; all before the second turn ("system"); all up to the
words of the user ("opening")."""

Brackets: TypeAlias = Literal["weigh", "split", "letters"]


@dataclass(frozen=True, slots=True)
class Use:
    """How a recipe uses one encoder.

    encoder: its kind. key: what ComfyUI calls its tokens. sizes: of the kind that are taken; none: all.
    template: the text around a prompt, "{}" in the place of it. picture_template: the one where pictures are
        given; empty: the same.
    takes_whole: a prompt that begins with <|im_start|> is the whole text, without a template.
    brackets: whether they weigh words, only split the text into pieces, or are letters.
    blank_is_padding: whether the empty prompt, which weights move away from, is padding alone.
    layers: whose states are taken, side by side. norm_layer: whether a layer before the last gets the final
        norm too.
    cut: what is left out at the front.
    min_length: what the tokens are padded to, and then to a multiple of `multiple`. masks: whether padding is
        hidden from attention. padding_place: the position that it has; None: it counts on.
    gives_mask: whether the conditioning says what is padding.
    tokens_only: the encoder need not be there: the family itself reads its token numbers and weights.
    stand_in: width of the zeros that stand for it where it was not loaded; 0: it is needed.
    """

    encoder: str
    key: str
    sizes: tuple[str, ...] = ()
    template: str = "{}"
    picture_template: str = ""
    takes_whole: bool = False
    brackets: Brackets = "weigh"
    blank_is_padding: bool = False
    layers: tuple[Layer, ...] = (None,)
    norm_layer: bool = False
    cut: Cut = "nothing"
    min_length: int = 0
    multiple: int = 1
    padding_place: int | None = None
    masks: bool = False
    gives_mask: bool = False
    tokens_only: bool = False
    stand_in: int = 0

    @property
    def embedding_key(self) -> str:
        """What embedding files call the encoder: "clip_l", "t5xxl", "qwen3_4b"."""
        return self.key if len(self.key) > 1 else self.encoder


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to make a conditioning.

    types: those of the loaders that ask for it. otherwise: it also answers to types that no recipe has for
        these encoders, except `not_for`.
    context: the rows of the conditioning, one group after the other; a group's encoders (by key) stand side
        by side. Groups are as wide as the widest, filled up with zeros, and at least `width` where one is
        missing.
    pooled: the parts of the pooled vector: an encoder's key and which of its outputs.
    picture_text: what stands for a picture in a prompt, where the encoders see pictures.
    """

    name: str
    uses: tuple[Use, ...]
    context: tuple[tuple[str, ...], ...]
    pooled: tuple[tuple[str, Literal["pooled", "projected"]], ...] = ()
    types: tuple[str, ...] = ()
    otherwise: bool = False
    not_for: tuple[str, ...] = ()
    width: int = 0
    picture_text: str = ""

    @property
    def encoders(self) -> tuple[str, ...]:
        """The kinds of its encoders."""
        return tuple(dict.fromkeys(use.encoder for use in self.uses if not use.tokens_only))

    def answers(self, kind: str) -> bool:
        """Whether a loader's type asks for it."""
        return kind == self.name or kind in self.types


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an encoder file may be: its kind, the sizes that it may have, and how unusual that would be."""

    encoder: str
    sizes: tuple[str, ...]
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, and the candidate that each file is, in their order."""

    recipe: Recipe
    candidates: tuple[Candidate, ...]


def choose(recipes: Iterable[Recipe], kind: str, files: Sequence[tuple[str, Sequence[Candidate]]]) -> Choice:
    """The recipe for encoder files (what to call each, and what it may be), and what each file is in it.

    kind: the loader's type. Some of the encoders that it asks for will do: encoding says what is missing.
    ModelFileError says what the type takes and what was found instead."""
    known = tuple(recipes)
    offered = [candidates for _, candidates in files]
    asked = [recipe for recipe in known if recipe.answers(kind)]
    others = [recipe for recipe in known if recipe.otherwise and kind not in recipe.not_for]
    tried = [(recipe, True) for recipe in (*asked, *others)] + [(recipe, False) for recipe in asked]
    for recipe, is_whole in tried:
        assigned = _assigned(recipe, offered, is_whole=is_whole)
        if assigned:
            return Choice(recipe, assigned)
    found = ", ".join(f"{name} ({_names(candidates)})" for name, candidates in files)
    takes = "; or ".join(wants(recipe) for recipe in asked) or "no text encoders that are known here"
    fitting = [recipe for recipe in known if _assigned(recipe, offered, is_whole=True)]
    types = ", ".join(dict.fromkeys(name for recipe in fitting for name in recipe.types))
    hint = f". For what was given the type would be {types}" if types else ""
    raise ModelFileError(f"the type {kind!r} takes {takes}; found {found}{hint}")


def _assigned(
    recipe: Recipe, files: Sequence[Sequence[Candidate]], *, is_whole: bool
) -> tuple[Candidate, ...] | None:
    """What each file is in a recipe, the most usual way; None where they do not belong to it, or (whole) do
    not make it up."""
    best: tuple[Candidate, ...] | None = None
    for chosen in itertools.product(*files):
        given = [candidate.encoder for candidate in chosen]
        uses = {use.encoder: use for use in recipe.uses if not use.tokens_only}
        needed = {name for name, use in uses.items() if is_whole and not use.stand_in}
        is_fit = len(set(given)) == len(given) and needed <= set(given) <= set(uses)
        if not is_fit or not all(_fits(uses[candidate.encoder], candidate) for candidate in chosen):
            continue
        if best is None or _rank(chosen) < _rank(best):
            best = chosen
    return best


def _fits(use: Use, candidate: Candidate) -> bool:
    return not use.sizes or not candidate.sizes or bool(set(use.sizes) & set(candidate.sizes))


def _rank(candidates: Iterable[Candidate]) -> int:
    return sum(candidate.rank for candidate in candidates)


def _names(candidates: Sequence[Candidate]) -> str:
    return " or ".join(_said(c.encoder, c.sizes if len(c.sizes) == 1 else ()) for c in candidates)


def wants(recipe: Recipe) -> str:
    """The text encoders of a recipe, in words."""
    uses = [use for use in recipe.uses if not use.tokens_only]
    needed = [_said(use.encoder, use.sizes) for use in uses if not use.stand_in]
    optional = [_said(use.encoder, use.sizes) for use in uses if use.stand_in]
    said = " and ".join(needed)
    return said + (f"any of {', '.join(optional)}" if optional else "")


def _said(encoder: str, sizes: Sequence[str]) -> str:
    return f"{encoder} ({'/'.join(sizes)})" if sizes else encoder
