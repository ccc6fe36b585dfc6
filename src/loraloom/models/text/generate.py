"""Texts that a language model among the text encoders writes, drawn as ComfyUI draws them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.models.encoder import EncoderKind, encoder_kind
from loraloom.models.handles import TextEncoders, TextPart
from loraloom.models.library_class import library_class
from loraloom.models.parts.causal_layouts import TOKENS
from loraloom.models.recipe import Use
from loraloom.models.residency.activations import kept_numbers, sequence_numbers
from loraloom.models.text.causal import CausalText
from loraloom.models.text.causal_run import CausalRun, Read
from loraloom.models.text.encode import prompt_tokens, recipe_of, templated, with_pictures
from loraloom.models.text.run import TextMemory
from loraloom.models.text.tokens import Chunk, rules_for
from loraloom.weights.capacity import clear_about_memory, until_it_fits

SYSTEM_TURN = "<|im_start|>system\n{}<|im_end|>\n"
_ANY_SYSTEM_TURN = re.compile(r"^<\|im_start\|>system\n.*?<\|im_end\|>\n", re.DOTALL)

HEAD = "lm_head.weight"
"""What turns states into scores, in files that hold it beside the table of token vectors."""

SCORES = 10
"""Numbers for each token of the vocabulary that drawing one holds at once."""

NO_THOUGHT = "<think>\n\n</think>\n\n"
"""What an answer begins with where the model is not to think first."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the next token is drawn.

    repetition: divides the scores of tokens that were written already (multiplies negative ones); presence:
    is taken from them. top_k: so many of the likeliest remain, 0: all. min_p: those at least so likely as
    this part of the likeliest. top_p: the likeliest that together are this likely."""

    seed: int
    temperature: float = 0.7
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.05
    repetition: float = 1.05
    presence: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked.

    is_whole: the text is taken as it stands, without a template. thinks: whether the model may think first.
    pictures: each (1, H, W, 3) in 0…1; they stand before the text. system: what the model is told beforehand,
    in the place of what the template tells it.
    """

    text: str
    is_whole: bool = False
    thinks: bool = False
    pictures: tuple[Tensor, ...] = ()
    system: str = ""


def split_thought(text: str) -> tuple[str, str]:
    """(answer, thought) of what a model wrote; all that it wrote is thought where that has no end."""
    before, begins, rest = text.partition("<think>")
    if not begins or before.strip():
        return text, ""
    thought, _, answer = rest.partition("</think>")
    return answer.strip("\n"), thought.strip("\n")


def generate_text(
    memory: TextMemory,
    clip: TextEncoders,
    question: Question,
    folders: ModelFolders,
    length: int,
    drawing: Drawing | None = None,
    said: Callable[[int], None] = lambda count: None,
) -> str:
    """What the language model answers, at most `length` tokens.

    drawing: None: always the likeliest token. said: told the number of tokens so far after each.
    Raises InputError where there is no language model, or none that sees pictures."""
    with clear_about_memory("the language model"):
        return until_it_fits(
            lambda: _generated(memory, clip, question, folders, length, drawing, said),
            lambda: memory.text_gives_way(clip),
        )


def _generated(
    memory: TextMemory,
    clip: TextEncoders,
    question: Question,
    folders: ModelFolders,
    length: int,
    drawing: Drawing | None,
    said: Callable[[int], None],
) -> str:
    use, part, kind = _speaker(clip)
    module = cast("CausalText", memory.text(clip)[use.encoder])
    if question.pictures and module.visual is None:
        raise InputError(f"the text encoder {kind.title} of {recipe_of(clip).name} sees no pictures")
    rules = rules_for(kind, use, part.weights)
    reserve = partial(memory.reserve_text, clip, use.encoder)
    run = CausalRun(module, use, rules, memory.device, kind.vision, reserve)
    chunk = question_tokens(clip, question, folders)
    with torch.inference_mode():
        read = run.read(chunk)
        tokens = len(read.vectors)
        kept = kept_numbers(module.model, tokens + length)
        reserve(sequence_numbers(module.model, 1, tokens) + kept + _head_numbers(module, part, kind))
        written = _write(module, read, _head(module, part, kind), kind, length, drawing, said)
    return rules.tokenizer().decode(written)


def question_tokens(clip: TextEncoders, question: Question, folders: ModelFolders) -> Chunk:
    """The tokens of a question."""
    use, _, kind = _speaker(clip)
    places = recipe_of(clip).picture_text * len(question.pictures)
    is_whole = question.is_whole or (use.takes_whole and question.text.startswith("<|im_start|>"))
    text = question.text if is_whole else templated(use, places + question.text, bool(question.pictures))
    if question.system and not is_whole:
        text = SYSTEM_TURN.format(question.system) + re.sub(_ANY_SYSTEM_TURN, "", text, count=1)
    if kind.vocabulary.thinks and not is_whole and not question.thinks and not text.endswith(NO_THOUGHT):
        text += NO_THOUGHT
    tokens, _ = prompt_tokens(clip, use, text, folders)
    (chunk,) = with_pictures(tokens, question.pictures, kind.vision)
    return chunk


def _speaker(clip: TextEncoders) -> tuple[Use, TextPart, EncoderKind]:
    """The language model that can end what it says."""
    for use in recipe_of(clip).uses:
        kind, part = encoder_kind(use.encoder), clip.part(use.encoder)
        if kind.vocabulary.stops and part is not None:
            return use, part, kind
    names = ", ".join(part.role for part in clip.parts)
    raise InputError(f"these text encoders write no text ({names}): load a Qwen language model")


def _head(module: CausalText, part: TextPart, kind: EncoderKind) -> Tensor:
    """(V, D) what turns states into scores: the file's own, or the table of token vectors."""
    norm, name = module.model.get_parameter("norm.weight"), kind.prefix + HEAD
    if name in part.weights:
        return part.weights.read(name, norm.dtype).to(norm.device)
    table = _table(module)
    if table is not None:
        return table
    count = part.weights.shapes[f"{kind.prefix}{TOKENS}"][0]
    return module.embed(torch.arange(count, device=norm.device))  # kept in 8 bits


def _head_numbers(module: CausalText, part: TextPart, kind: EncoderKind) -> int:
    """What `_head` takes of the device, and drawing from its scores; widening a table takes as much again."""
    rows, width = part.weights.shapes[f"{kind.prefix}{TOKENS}"]
    if kind.prefix + HEAD in part.weights:
        return rows * (width + SCORES)
    return rows * ((0 if _table(module) is not None else 2 * width) + SCORES)


def _table(module: CausalText) -> Tensor | None:
    """(V, D) the table of token vectors, where it is in the type to compute in."""
    table = module.model.get_submodule("embed_tokens").weight
    dtype = module.model.get_parameter("norm.weight").dtype
    return table if isinstance(table, nn.Parameter) and table.dtype == dtype else None


def _write(
    module: CausalText,
    read: Read,
    head: Tensor,
    kind: EncoderKind,
    length: int,
    drawing: Drawing | None,
    said: Callable[[int], None],
) -> list[int]:
    cache = library_class("transformers.cache_utils:DynamicCache")()
    seen = read.seen()
    place = len(read.vectors) if seen is None else int(seen.positions.max()) + 1
    given: dict[str, object] = {} if seen is None else seen.arguments()
    source = None
    if drawing is not None:
        source = torch.Generator(read.vectors.device).manual_seed(drawing.seed)
    x, written = read.vectors[None], list[int]()
    while len(written) < length:
        out = module.model(inputs_embeds=x, past_key_values=cache, use_cache=True, **given)
        scores = F.linear(out.last_hidden_state[:, -1], head)[0].float()
        token = int(scores.argmax()) if drawing is None else draw(scores, written, drawing, source)
        if token in kind.vocabulary.stops:
            break
        written.append(token)
        said(len(written))
        x = module.embed(torch.tensor([[token]], device=x.device))
        given = {} if seen is None else {"position_ids": torch.full((3, 1, 1), place, device=x.device)}
        place += 1
    return written


def draw(
    scores: Tensor, written: Sequence[int], drawing: Drawing, source: torch.Generator | None = None
) -> int:
    """The next token, from scores (V,) float32."""
    lowest = torch.finfo(scores.dtype).min
    if written:
        known = torch.tensor(sorted(set(written)), device=scores.device)
        own = scores[known]
        own = torch.where(own < 0, own * drawing.repetition, own / drawing.repetition) - drawing.presence
        scores = scores.index_put((known,), own)
    scores = scores / drawing.temperature
    names = None
    if drawing.top_k > 0:
        scores, names = scores.topk(min(drawing.top_k, len(scores)))
    if drawing.min_p > 0:
        likely = scores.softmax(-1)
        scores = scores.masked_fill(likely < drawing.min_p * likely.max(), lowest)
    if drawing.top_p < 1:
        ordered, order = scores.sort(descending=True)
        is_over = ordered.softmax(-1).cumsum(-1) > drawing.top_p
        is_over[0] = False
        scores = scores.masked_fill(torch.zeros_like(is_over).scatter(0, order, is_over), lowest)
    drawn = torch.multinomial(scores.softmax(-1), 1, generator=source)
    return int(drawn if names is None else names[drawn])
