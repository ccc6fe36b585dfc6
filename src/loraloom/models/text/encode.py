"""A prompt → CONDITIONING, by the recipe of the family that the text encoders belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import InputError, ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.encoder import Vision, Vocabulary, encoder_kind
from loraloom.models.handles import TextEncoders, TextPart
from loraloom.models.recipe import Cut, Recipe, Use
from loraloom.models.text.clip import Encoded
from loraloom.models.text.embeddings import EmbeddingFinder, PromptWarning
from loraloom.models.text.recipes import known_recipes
from loraloom.models.text.run import TextMemory, TextModule, encoder_run, weighted
from loraloom.models.text.tokens import Chunk, Picture, Tokens, WeightedToken, rules_for, tokenize
from loraloom.sampling.types import Cond, Conditioning
from loraloom.weights.capacity import clear_about_memory, until_it_fits
from loraloom.weights.source import WeightSource


def encode_prompt(
    memory: TextMemory,
    clip: TextEncoders,
    text: str | Mapping[str, str],
    folders: ModelFolders,
    pictures: Sequence[Tensor] = (),
    *,
    template: str = "",
    keep_pictures: bool = True,
) -> tuple[Conditioning, tuple[PromptWarning, ...]]:
    """Encode one text, or a text per encoder key ("l", "g", "t5xxl"), with float32 results.

    pictures: each (1, H, W, 3) in 0…1, for the places that the text has for them (`Recipe.picture_text`).
    template: in place of the recipe's own, for encoders with one.
    keep_pictures: whether the conditioning has the rows of pictures; else it says where they were: the extra
        "image_slots" (1, N), the number of rows before each.
    Raises ModelFileError where an encoder is missing or an embedding file cannot be used, InputError where
    no text is for any of the encoders."""
    recipe = recipe_of(clip)
    if not isinstance(text, str) and not any(use.key in text for use in recipe.uses):
        raise InputError(
            f"these text encoders ({recipe.name}) are not of the family that this node is for: its prompts"
            f" are for {', '.join(text)}; use CLIPTextEncode"
        )
    tokens: dict[str, Tokens] = {}
    warnings: dict[PromptWarning, None] = {}
    if pictures and not recipe.picture_text:
        said = f"the text encoders of {recipe.name} see no pictures: the prompt is read without them"
        warnings[PromptWarning("", said)] = None
    uses = [use for use in recipe.uses if use.tokens_only or _part(clip, use) is not None]
    for use in uses:
        own = text if isinstance(text, str) else text.get(use.key, "")
        own = templated(use, own, bool(pictures), template)
        found, said = prompt_tokens(clip, use, own, folders)
        tokens[use.key] = with_pictures(found, pictures, encoder_kind(use.encoder).vision)
        warnings.update(dict.fromkeys(said))
    if not isinstance(text, str):
        _even_out(tokens, clip, uses)
    outputs = {use.key: _run(memory, clip, use, tokens[use.key]) for use in uses if not use.tokens_only}
    if not keep_pictures:
        outputs = {key: without_pictures(out) for key, out in outputs.items()}
    cond = combined(recipe, outputs)
    extras = [_numbers(use, tokens[use.key]) for use in uses if use.tokens_only]
    if not keep_pictures:
        extras += [_slots(out) for out in outputs.values()]
    cond = replace(cond, extras={name: tensor for extra in extras for name, tensor in extra.items()})
    return (cond,), tuple(warnings)


def with_pictures(tokens: Tokens, pictures: Sequence[Tensor], vision: Vision | None) -> Tokens:
    """Pictures in the places of the tokens that stand for them, in order; what is left over has no effect."""
    waiting = list(pictures)
    if vision is None or not waiting:
        return tokens

    def filled(item: WeightedToken) -> WeightedToken:
        is_place = isinstance(item.token, int) and item.token == vision.token and waiting
        return replace(item, token=Picture(waiting.pop(0))) if is_place else item

    return tuple(tuple(filled(item) for item in chunk) for chunk in tokens)


def without_pictures(out: Encoded) -> Encoded:
    """States without the rows of pictures; `pictures` then says how many rows stand before each."""
    kept = torch.ones(out.hidden.shape[1], dtype=torch.bool)
    for first, count in out.pictures:
        kept[first : first + count] = False
    places = tuple((int(kept[:first].sum()), 0) for first, _ in out.pictures)
    mask = None if out.mask is None else out.mask[:, kept]
    return replace(out, hidden=out.hidden[:, kept], mask=mask, pictures=places)


def _slots(out: Encoded) -> dict[str, Tensor]:
    return {"image_slots": torch.tensor([[first for first, _ in out.pictures]], dtype=torch.long)}


def templated(use: Use, text: str, has_pictures: bool = False, template: str = "") -> str:
    """A prompt within the text that its encoder is given. template: in place of the recipe's own."""
    if use.takes_whole and text.startswith("<|im_start|>"):
        return text
    own = has_pictures and use.picture_template or use.template
    return (template if template and own != "{}" else own).replace("{}", text)


def cut_at(vocabulary: Vocabulary, cut: Cut, chunk: Chunk) -> int:
    """How many tokens a conditioning leaves out at its front: all before the second turn, and of that, where
    it is the user's, the opening too."""
    if cut == "nothing":
        return 0
    turns = [i for i, t in enumerate(chunk) if isinstance(t.token, int) and t.token == vocabulary.turn]
    begin = turns[:2][-1] if turns else 0
    opening = len(vocabulary.user) + 1
    following = tuple(t.token for t in chunk[begin + 1 : begin + opening])
    is_user = following == vocabulary.user and len(chunk) > begin + opening
    return begin + opening if cut == "opening" and is_user else begin


def recipe_of(clip: TextEncoders) -> Recipe:
    """The recipe that text encoders are used by."""
    recipe = known_recipes().get(clip.kind)
    if recipe is None:
        raise ModelFileError(f"text encoders of the kind {clip.kind!r} cannot encode a prompt")
    return recipe


def combined(recipe: Recipe, outputs: Mapping[str, Encoded]) -> Cond:
    """What the encoders give, by key, joined as the recipe says."""
    groups = [_side_by_side(recipe, group, outputs) for group in recipe.context]
    found = [group for group in groups if group is not None]
    width = max(group.shape[-1] for group in found)
    width = width if len(found) == len(groups) else max(width, recipe.width)
    context = torch.cat([F.pad(group, (0, width - group.shape[-1])) for group in found], dim=1)
    pooled = [
        getattr(outputs[key], which) if key in outputs else torch.zeros(1, _use(recipe, key).stand_in)
        for key, which in recipe.pooled
    ]
    is_pooled = bool(pooled) and all(vector is not None for vector in pooled)
    mask = next(iter(outputs.values())).mask if len(outputs) == 1 else None
    is_padded = mask is not None and bool((mask == 0).any())
    return Cond(
        context,
        torch.cat(pooled, dim=-1) if is_pooled else None,
        mask=mask if is_padded else None,
        recipe=recipe.name,
    )


def _side_by_side(recipe: Recipe, keys: tuple[str, ...], outputs: Mapping[str, Encoded]) -> Tensor | None:
    """Encoders read side by side, channel by channel (Podell et al. 2023), cut to the shortest; zeros stand
    before what is there for one that is missing. None where all are."""
    present = [outputs[key].hidden for key in keys if key in outputs]
    if not present:
        return None
    length = min(hidden.shape[1] for hidden in present)
    parts = [
        outputs[key].hidden[:, :length]
        if key in outputs
        else present[0].new_zeros(1, length, _use(recipe, key).stand_in)
        for key in keys
    ]
    return torch.cat(parts, dim=-1)


def _use(recipe: Recipe, key: str) -> Use:
    return next(use for use in recipe.uses if use.key == key)


def _part(clip: TextEncoders, use: Use) -> TextPart | None:
    """The encoder of a use; None where zeros stand for it."""
    part = clip.part(use.encoder)
    if part is None and not use.stand_in:
        has = ", ".join(p.role for p in clip.parts) or "none"
        raise ModelFileError(f"the text encoder {use.encoder} is needed and was not loaded (loaded: {has})")
    return part


def _loaded(clip: TextEncoders, use: Use) -> TextPart:
    part = _part(clip, use)
    assert part is not None
    return part


def prompt_tokens(
    clip: TextEncoders, use: Use, text: str, folders: ModelFolders
) -> tuple[Tokens, list[PromptWarning]]:
    """A text as one encoder reads it, and what has no effect in it."""
    kind = encoder_kind(use.encoder)
    weights = WeightSource({}) if use.tokens_only else _loaded(clip, use).weights
    own = kind.own(weights.shapes)
    rows, width = next(
        ((own[n][0], own[n][-1]) for n in kind.tokens_table if len(own.get(n, ())) > 1), (0, 0)
    )
    find = EmbeddingFinder(folders, use.embedding_key, width, clip.embeddings)
    options = {name: clip.option(f"{use.key}_{name}") for name in ("min_padding", "min_length")}
    set_by_nodes = {name: value for name, value in options.items() if isinstance(value, int)}
    rules = replace(rules_for(kind, use, weights), **set_by_nodes)
    found = tokenize(text, rules, find)
    numbers = [t.token for chunk in found.chunks for t in chunk if isinstance(t.token, int)]
    highest = max(numbers, default=0)
    if rows and highest >= rows:
        with weights.naming():
            raise ModelFileError(
                f"{kind.title} has {rows} token vectors, too few for its tokenizer (token {highest})"
            )
    return found.chunks, [*find.warnings, *(find.unknown(name) for name in found.unknown)]


def _numbers(use: Use, tokens: Tokens) -> dict[str, Tensor]:
    """Token numbers and weights (1, N) for a family that reads them itself, without embeddings."""
    chosen = [t for t in tokens[0] if isinstance(t.token, int)]
    return {
        f"{use.key}_ids": torch.tensor([[t.token for t in chosen]]),
        f"{use.key}_weights": torch.tensor([[t.weight for t in chosen]]),
    }


def _even_out(tokens: dict[str, Tokens], clip: TextEncoders, uses: list[Use]) -> None:
    """Give encoders that read chunks equally many, with empty ones at the end."""
    rules = {
        use.key: rules_for(encoder_kind(use.encoder), use, _loaded(clip, use).weights)
        for use in uses
        if not use.tokens_only
    }
    chunked = {key: own for key, own in rules.items() if own.length}
    count = max((len(tokens[key]) for key in chunked), default=0)
    for key, own in chunked.items():
        tokens[key] += (own.empty(own.length or 0),) * (count - len(tokens[key]))


def _run(memory: TextMemory, clip: TextEncoders, use: Use, tokens: Tokens) -> Encoded:
    """One encoder's output for a prompt."""
    with clear_about_memory("the text encoder"):
        return until_it_fits(lambda: _encoded(memory, clip, use, tokens), lambda: memory.text_gives_way(clip))


def _encoded(memory: TextMemory, clip: TextEncoders, use: Use, tokens: Tokens) -> Encoded:
    part = _loaded(clip, use)
    module = cast("TextModule", memory.text(clip)[use.encoder])
    if clip.clip_skip is not None and len(use.layers) == 1:
        use = replace(use, layers=(clip.clip_skip if 1 <= -clip.clip_skip <= module.depth else None,))
    kind = encoder_kind(use.encoder)
    reserve = partial(memory.reserve_text, clip, use.encoder)
    run = encoder_run(module, kind, use, rules_for(kind, use, part.weights), memory.device, reserve)
    out = weighted(run, tokens, tuple(lora.signature for lora in clip.stack))
    cut = cut_at(kind.vocabulary, use.cut, tokens[0])
    pictures = tuple((first - cut, count) for first, count in out.pictures)
    mask = None if out.mask is None else out.mask[:, cut:]
    return replace(out, hidden=out.hidden[:, cut:], mask=mask, pictures=pictures)
