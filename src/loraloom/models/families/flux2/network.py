"""Flux.2's transformer as sampling uses it: prompts of one length, reference pictures, guidance."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.diffusion_network import Run
from loraloom.models.handles import KEEPS_REFERENCES
from loraloom.models.parts.flux2_attention import Keeping, install
from loraloom.models.parts.flux_times import embedded, guidance_of
from loraloom.models.parts.kept_tokens import Kept, kept_of, to_keep
from loraloom.models.parts.latent_maps import of_pixel_tokens, pixel_tokens
from loraloom.models.parts.references import Place, grid, places, placing, references
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

TEXT = 512
"""Rows that a prompt has at least: shorter ones get zeros in front."""

TIME_ZERO = "index_timestep_zero"
PLACINGS = ("index", "offset", "uxo", TIME_ZERO)
AXES = 4
STEP = 10
"""Between the new picture and its references on the first axis."""


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states, guidance for models with it, and the reference pictures."""
    context = F.pad(cond.context, (0, 0, max(0, TEXT - cond.context.shape[1]), 0))
    shown = references(cond, run)
    method = placing(cond, PLACINGS, str(run.options.get("reference_method", "index"))) if shown else ""
    return Inputs({"context": Tokens(context)}, guidance_of(cond, run), references=shown, placing=method)


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 128, H, W), time (B,) in [0, 1]. Spelled out because diffusers' own forward pass rounds times and
    guidance to the computing type before it embeds them, and knows one way alone to place references."""
    kept, is_filled = _kept(x, given, run)
    shown = () if is_filled else given.references
    pictures = (x, *shown)
    states = module.x_embedder(
        torch.cat([pixel_tokens(picture) for picture in pictures], dim=1).to(run.dtype)
    )
    context = module.context_embedder(given.tokens["context"].values.to(x.device, run.dtype))
    text, new = context.shape[1], x.shape[-2] * x.shape[-1]
    rotary = module.pos_embed(positions(text, pictures, given.placing).to(x.device))

    now = embedded(module.time_guidance_embed, time, given, run)
    on_text = module.double_stream_modulation_txt(now)
    on_states = module.double_stream_modulation_img(now)
    on_all = module.single_stream_modulation(now)
    count = states.shape[1] - new
    if given.placing == TIME_ZERO and count:
        at_zero = embedded(module.time_guidance_embed, torch.zeros_like(time), given, run)
        on_states = _followed(on_states, new, module.double_stream_modulation_img(at_zero), count)
        on_all = _followed(on_all, text + new, module.single_stream_modulation(at_zero), count)
    attending = iter(_attending(module, kept, count))
    for block in module.transformer_blocks:
        context, states = block(states, context, on_states, on_text, rotary, next(attending))
    states = torch.cat([context, states], dim=1)
    for block in module.single_transformer_blocks:
        states = block(states, None, on_all, rotary, next(attending))
    if kept is not None and not is_filled:
        run.kept.append(kept)
    output = module.proj_out(module.norm_out(states[:, text : text + new], now)).float()
    return of_pixel_tokens(output, x)


def _kept(x: Tensor, given: Inputs, run: Run) -> tuple[Kept | None, bool]:
    """What is kept of the references, and whether an earlier step has filled it. None where nobody asks for
    it, or there is no memory; then each step computes them, which gives a picture that is a little other."""
    if not given.references or not run.options.get(KEEPS_REFERENCES):
        return None, False
    parts = (given.tokens["context"].values, *given.references)
    if known := kept_of(run, parts, tuple(x.shape[-2:])):
        return known, True
    tokens = sum(picture.shape[-2] * picture.shape[-1] for picture in given.references)
    width = run.number("num_attention_heads") * run.number("attention_head_dim")
    layers = run.number("num_layers") + run.number("num_single_layers")
    return to_keep(run, parts, x, tokens=tokens, width=width, layers=layers), False


def _attending(module: Any, kept: Kept | None, last: int) -> Iterator[dict[str, Keeping] | None]:
    """What each block's attention is told, in order. last: the references' tokens among the states."""
    if kept is None:
        yield from repeat(None)
        return
    install(module)
    for layer in kept.layers:
        yield {"keeping": Keeping(layer, last)}


def _followed(first: Tensor, count: int, then: Tensor, rest: int) -> Tensor:
    """(B, count + rest, D): one modulation (B, D) for the first tokens, another for those behind them."""
    batch, width = first.shape
    spread = (first[:, None].expand(batch, count, width), then[:, None].expand(batch, rest, width))
    return torch.cat(spread, dim=1)


def positions(text: int, pictures: tuple[Tensor, ...], method: str) -> Tensor:
    """(tokens, 4) of the text, (0, 0, 0, number), and of the new picture and its references, (index, row,
    column, 0)."""
    sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
    found = [Place(), *places(method, sizes[0], sizes[1:], STEP)]
    words = torch.zeros(text, AXES)
    words[:, 3] = torch.arange(text)
    grids = [grid(*size, place, AXES) for size, place in zip(sizes, found, strict=True)]
    return torch.cat([words, *grids])
