"""How Qwen-Image 2.1 is called: text, given pictures and the new one as one sequence of tokens.

What comes before the new picture is modulated as by time 0, and does not see it. Text sees what stands
before it, a picture itself and what stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.library_class import library_class
from loraloom.models.parts.latent_maps import of_pixel_tokens, pixel_tokens
from loraloom.models.parts.references import references
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

THETA = 10000.0
MOST_KEPT = 4
"""Prompts whose keys and values are kept at once: positive and negative ones, of areas too."""


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states, cut where given pictures stand in it, and the latents of those."""
    given = references(cond, run)
    length = cond.context.shape[1]
    slots = _slots(cond, len(given), length)
    pieces = zip((0, *slots), (*slots, length), strict=True)
    texts = {f"text {n}": Tokens(cond.context[:, begin:end]) for n, (begin, end) in enumerate(pieces)}
    return Inputs(texts, references=given)


def _slots(cond: Cond, count: int, length: int) -> list[int]:
    """How many rows of text stand before each given picture; all of them where nothing says so."""
    said = cond.extras.get("image_slots")
    slots = [int(slot) for slot in said.flatten()] if said is not None else []
    slots = [*slots[:count], *[length] * (count - len(slots))]
    if slots != sorted(slots) or any(not 0 <= slot <= length for slot in slots):
        raise InputError(f"the places of the pictures in the prompt, {slots}, are not within {length} tokens")
    return slots


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, C, H, W), time (B,) in [0, 1].

    Spelled out over the module's blocks: diffusers' own forward pass takes pictures in groups of four tokens
    only, and lays out each by its own size."""
    lengths = [tokens.values.shape[1] for tokens in given.tokens.values()]
    sizes = [picture.shape[-2:] for picture in (*given.references, x)]
    states = module.img_in(pixel_tokens(x).to(run.dtype))
    new = states.shape[1]
    rotary = rotations(positions(lengths, sizes), cast("Sequence[int]", run.config["axes_dims_rope"]))
    prefix = len(rotary) - new
    segments = _segments(lengths, sizes[:-1])

    kept, mode = _kept_prefix(x, given, run, prefix)
    if mode == "cached":
        rotary, segments = rotary[prefix:], None
    else:
        states = torch.cat([*_before(module, given, x, run), states], dim=1)
    is_new = torch.arange(states.shape[1], device=x.device) >= states.shape[1] - new
    embedded = module.time_text_embed(torch.cat([time, time.new_zeros(1)]), states)
    modulation, rotary = module.modulation(embedded), rotary.to(x.device)
    for number, block in enumerate(module.transformer_blocks):
        states = block(
            states,
            modulation,
            rotary_emb=rotary,
            target_token_mask=is_new,
            segments=segments,
            layer_cache=None if kept is None else kept.cache.get_layer(number),
            kv_cache_mode=mode,
            cache_write_slice=slice(prefix),
        )
    if mode == "extract":
        run.kept.append(kept)
    states = module.norm_out(states[:, -new:], embedded[:-1])
    return of_pixel_tokens(module.proj_out(states), x)


def _before(module: Any, given: Inputs, x: Tensor, run: Run) -> list[Tensor]:
    """The tokens of texts and given pictures by turns, up to the last text."""
    texts = [module.txt_in(tokens.values.to(x.device, run.dtype)) for tokens in given.tokens.values()]
    pictures = [module.img_in(pixel_tokens(picture).to(run.dtype)) for picture in given.references]
    return [part for pair in zip(texts, [*pictures, None], strict=True) for part in pair if part is not None]


@dataclass(frozen=True, eq=False, slots=True)
class Prefix:
    """Keys and values, block by block, of all tokens before a new picture of this size, which are the same at
    all times. given: the texts and pictures that they are of."""

    given: tuple[Tensor, ...]
    size: tuple[int, ...]
    cache: QwenImage21KVCache

    def is_of(self, given: tuple[Tensor, ...], size: tuple[int, ...]) -> bool:
        return (
            self.size == size
            and [own.shape for own in self.given] == [other.shape for other in given]
            and all(map(torch.equal, self.given, given))
        )


def _kept_prefix(
    x: Tensor, given: Inputs, run: Run, prefix: int
) -> tuple[Prefix | None, Literal["extract", "cached"] | None]:
    """What stands before x: known from an earlier step ("cached"), to be filled in by this one ("extract"),
    or not kept, because nobody asks for it or there is no memory for it."""
    if not run.options.get("keeps_prefix"):
        return None, None
    parts, size = (*(tokens.values for tokens in given.tokens.values()), *given.references), x.shape[-2:]
    for one in run.kept:
        if isinstance(one, Prefix) and one.is_of(parts, size):
            return one, "cached"
    layers = run.number("num_layers")
    width = run.number("num_attention_heads") * run.number("attention_head_dim")
    needed = 2 * layers * len(x) * prefix * width * run.dtype.itemsize
    if len(run.kept) >= MOST_KEPT or not run.has_room(needed):
        return None, None
    cache = library_class("diffusers.models.transformers.transformer_qwenimage21:QwenImage21KVCache")
    return Prefix(tuple(part.clone() for part in parts), size, cache(layers)), "extract"


def _segments(texts: Sequence[int], pictures: Sequence[Sequence[int]]) -> list[tuple[int, int, bool]]:
    """(first token, last + 1, whether it is text) of everything before the new picture."""
    counts = [0] * (2 * len(texts) - 1)
    counts[::2] = texts
    counts[1::2] = [height * width for height, width in pictures]
    found: list[tuple[int, int, bool]] = []
    start = 0
    for number, count in enumerate(counts):
        if count:
            found.append((start, start + count, number % 2 == 0))
        start += count
    return found


def positions(texts: Sequence[int], pictures: Sequence[Sequence[int]]) -> Tensor:
    """(tokens, 3) of texts and pictures by turns, the last picture being the new one.

    A token of text counts up on all axes. A picture is one step of the first axis and centred on the two
    others, aligned with the pixels of the new one; what follows it goes on after its longer side."""
    tall, wide = pictures[-1]
    start, found = 0, list[Tensor]()
    for length, (height, width) in zip(texts, pictures, strict=True):
        found.append(torch.arange(start, start + length, dtype=torch.float64)[:, None].expand(-1, 3))
        start += length
        grid = torch.full((height, width, 3), float(start), dtype=torch.float64)
        grid[..., 1] = _centred(height, tall)[:, None]
        grid[..., 2] = _centred(width, wide)
        found.append(grid.reshape(-1, 3))
        start += max(height, width)
    return torch.cat(found)


def _centred(count: int, target: int) -> Tensor:
    """Positions of a side's tokens; where one side alone is odd, they fall between those of the other."""
    return torch.arange(count, dtype=torch.float64) - (count + 1) // 2 + (count % 2 - target % 2) / 2


def rotations(places: Tensor, widths: Sequence[int]) -> Tensor:
    """(tokens, axes) → (tokens, sum(widths) / 2) complex numbers that pairs of channels are turned by."""
    angles: list[Tensor] = []
    for axis, width in enumerate(widths):
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        angles.append(places[:, axis, None] * THETA**-exponents)
    whole = torch.cat(angles, dim=-1).float()
    return torch.polar(torch.ones_like(whole), whole)
