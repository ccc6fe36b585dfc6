"""How Krea 2 is called: text, the new picture and references as one sequence of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import patches, unpatched
from loraloom.models.parts.references import Place, grid, placing, references
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

STILL = "index_timestep_zero"
METHODS = ("index", STILL)
"""Ways to place references: by number, all at the picture's time or at time 0."""


def inputs(cond: Cond, run: Run) -> Inputs:
    """The layers of the text encoder side by side, and reference latents where a way to place them is said:
    without one they are left out."""
    texts = {"context": Tokens(cond.context)}
    if not cond.options.get("reference_latents_method"):
        return Inputs(texts)
    return Inputs(texts, references=references(cond, run), placing=placing(cond, METHODS, "index"))


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1].

    Spelled out over the module's blocks because diffusers' own forward pass has no references."""
    context = given.tokens["context"].values.to(x.device, run.dtype)
    context = context.unflatten(-1, (run.number("num_text_layers"), run.number("text_hidden_dim")))
    text = module.txt_in(module.text_fusion(context))
    cut = [patches(latent.to(x.device)) for latent in (x, *given.references)]
    tokens = [module.img_in(patched.to(run.dtype)) for patched, _, _ in cut]
    places = positions(text.shape[1], [(rows, columns) for _, rows, columns in cut])
    rotary = module.rotary_emb(places.to(x.device))
    states = torch.cat([text, *tokens], dim=1)

    embedded = module.time_embed(time, run.dtype)
    times = [_projected(module, embedded)]
    if given.references and given.placing == STILL:
        times.append(_projected(module, module.time_embed(time.new_zeros(1), run.dtype)))
    end = text.shape[1] + tokens[0].shape[1]
    for block in module.transformer_blocks:
        if len(times) == 1:
            states = block(states, times[0], rotary)
        else:
            states = _in_two_times(block, states, times, end, rotary)
    output = module.final_layer(states[:, text.shape[1] : end], embedded).float()
    _, rows, columns = cut[0]
    return unpatched(output, rows, columns)[..., : x.shape[-2], : x.shape[-1]]


def _projected(module: Any, embedded: Tensor) -> Tensor:
    """(B, 1, 6 · width) what all blocks are modulated by."""
    return module.time_mod_proj(F.gelu(embedded, approximate="tanh"))


def _in_two_times(block: Any, states: Tensor, times: list[Tensor], end: int, rotary: Any) -> Tensor:
    """A block whose tokens from `end` on are modulated by the second of the times."""
    tables = [(one.unflatten(-1, (6, -1)) + block.scale_shift_table).unbind(-2) for one in times]

    def by_part(whole: Tensor, scale: int, shift: int | None = None) -> Tensor:
        parts: list[Tensor] = []
        for rows, table in zip((slice(end), slice(end, None)), tables, strict=True):
            part = whole[:, rows]
            parts.append(part * table[scale] if shift is None else part * (1 + table[scale]) + table[shift])
        return torch.cat(parts, dim=1)

    attended = block.attn(by_part(block.norm1(states), 0, 1), image_rotary_emb=rotary)
    states = states + by_part(attended, 2)
    return states + by_part(block.ff(by_part(block.norm2(states), 3, 4)), 5)


def positions(text: int, pictures: list[tuple[int, int]]) -> Tensor:
    """(tokens, 3): zeros for the text, then (number of the picture, row, column) of every patch."""
    grids = [grid(rows, columns, Place(number)) for number, (rows, columns) in enumerate(pictures)]
    return torch.cat([torch.zeros(text, 3), *grids])
