"""How Qwen-Image 2.1 is called: text, given pictures and the new one as one sequence of tokens.

What comes before the new picture is modulated as by time 0, and does not see it. Text sees what stands
before it, a picture itself and what stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.parts.kept_tokens import Kept, KeptLayer, kept_of, to_keep
from loraloom.models.parts.latent_maps import of_pixel_tokens, pixel_tokens
from loraloom.models.parts.references import references
from loraloom.models.parts.rotations import rotations
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

TIME_FACTOR = 1000.0


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
    rotary = rotations(positions(lengths, sizes), cast("Sequence[int]", run.config["axes_dims_rope"]))
    segments = _segments(lengths, sizes[:-1])
    states = module.img_in(pixel_tokens(x).to(run.dtype))
    time = ((time * TIME_FACTOR).to(run.dtype) / TIME_FACTOR).to(run.dtype)  # as the model was trained
    embedded = module.time_text_embed(torch.cat([time, time.new_zeros(1)]), states)
    call = _Call(module.modulation(embedded), rotary.to(x.device), segments, len(rotary) - states.shape[1])

    kept, is_filled = _kept(x, given, run, call.prefix)
    before = None if is_filled else torch.cat(_before(module, given, x, run), dim=1)
    if kept is None:
        states = torch.cat([cast(Tensor, before), states], dim=1)
    for number, block in enumerate(module.transformer_blocks):
        if kept is None:
            states = call.whole(block, states)
            continue
        if before is not None:
            before = call.before(block, before, kept.layers[number])
        states = call.new(block, states, kept.layers[number])
    if kept is not None and not is_filled:
        run.kept.append(kept)
    states = module.norm_out(states[:, states.shape[1] - x.shape[-2] * x.shape[-1] :], embedded[:-1])
    return of_pixel_tokens(module.proj_out(states), x)


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """How a step calls every block. prefix: tokens before the new picture's; segments: theirs."""

    modulation: Tensor
    rotary: Tensor
    segments: list[tuple[int, int, bool]]
    prefix: int

    def whole(self, block: Any, states: Tensor) -> Tensor:
        is_new = torch.arange(states.shape[1], device=states.device) >= self.prefix
        return block(states, self.modulation, self.rotary, target_token_mask=is_new, segments=self.segments)

    def before(self, block: Any, states: Tensor, layer: KeptLayer) -> Tensor:
        """What stands before the new picture, which does not see that, into `layer`."""
        return block(
            states,
            self.modulation,
            self.rotary[: self.prefix],
            target_token_mask=torch.zeros(self.prefix, dtype=torch.bool, device=states.device),
            segments=self.segments,
            layer_cache=layer,
            kv_cache_mode="extract",
            cache_write_slice=slice(self.prefix),
        )

    def new(self, block: Any, states: Tensor, layer: KeptLayer) -> Tensor:
        """The new picture, which sees what `layer` keeps of the others."""
        return block(
            states,
            self.modulation,
            self.rotary[self.prefix :],
            target_token_mask=torch.ones(states.shape[1], dtype=torch.bool, device=states.device),
            layer_cache=layer,
            kv_cache_mode="cached",
        )


def _before(module: Any, given: Inputs, x: Tensor, run: Run) -> list[Tensor]:
    """The tokens of texts and given pictures by turns, up to the last text."""
    texts = [module.txt_in(tokens.values.to(x.device, run.dtype)) for tokens in given.tokens.values()]
    pictures = [module.img_in(pixel_tokens(picture).to(run.dtype)) for picture in given.references]
    return [part for pair in zip(texts, [*pictures, None], strict=True) for part in pair if part is not None]


def _kept(x: Tensor, given: Inputs, run: Run, prefix: int) -> tuple[Kept | None, bool]:
    """What is kept of the tokens before x, and whether an earlier step has filled it: they are modulated as
    by time 0 and do not see x, so it is the same in all steps. None: nobody asks, or there is no memory."""
    if not run.options.get("keeps_prefix"):
        return None, False
    parts = (*(tokens.values for tokens in given.tokens.values()), *given.references)
    if known := kept_of(run, parts, tuple(x.shape[-2:])):
        return known, True
    width = run.number("num_attention_heads") * run.number("attention_head_dim")
    return to_keep(run, parts, x, tokens=prefix, width=width, layers=run.number("num_layers")), False


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
