"""How Qwen-Image is called: latents as patches after those of reference pictures, and where each stands.

The forward pass is spelled out because diffusers' own centres odd sides one lower, begins the text behind
the largest picture instead of the target, and rounds times to the computing type before it embeds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import patches, unpatched
from loraloom.models.parts.references import places, placing, references
from loraloom.models.parts.rotations import rotations
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

METHODS = ("index", "offset", "negative_index", "index_timestep_zero", "uxo")
"""Where reference pictures stand: at frames 1, 2 …; at frame 1 side by side; at frames -1, -2 …; as the
first, and seen at time 0; as the second (it is another model's, and ComfyUI takes it for that)."""


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states and the reference pictures, placed as the conditioning says or the model."""
    method = placing(cond, METHODS, _usual(run))
    return Inputs(
        {"context": Tokens(cond.context)},
        references=references(cond, run),
        placing="offset" if method == "uxo" else method,
    )


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W) or with frames (B, 16, F, H, W), time (B,) in [0, 1]."""
    method = given.placing
    target, rows, columns = _tokens(x)
    frames = x.shape[2] if x.dim() == 5 else 1
    pictures = [_tokens(_picture(reference).to(x)) for reference in given.references]
    grids = [grid(frames, rows, columns)]
    for number, (frame, top, left) in enumerate(_places(method, given.references)):
        _, height, width = pictures[number]
        grids.append(grid(1, height, width, frame, top, left))
    states = module.img_in(torch.cat([target, *(tokens for tokens, _, _ in pictures)], 1).to(run.dtype))
    context = given.tokens["context"].values.to(x.device, run.dtype)
    context = module.txt_in(module.txt_norm(context))
    start = max(rows // 2, columns // 2)
    text = torch.arange(start, start + context.shape[1])[:, None].expand(-1, 3)
    axes = cast("tuple[int, ...]", run.config["axes_dims_rope"])
    rotary = (rotations(torch.cat(grids), axes).to(x.device), rotations(text, axes).to(x.device))
    at_zero = method == "index_timestep_zero" and bool(pictures)
    index = None
    if at_zero:
        time = torch.cat([time, torch.zeros_like(time)])
        index = (torch.arange(states.shape[1], device=x.device) >= target.shape[1]).int().expand(len(x), -1)
    layers = torch.zeros(len(time), dtype=torch.long, device=x.device)
    embedded = module.time_text_embed(time, states, layers if run.config["use_additional_t_cond"] else None)
    for block in module.transformer_blocks:
        block.zero_cond_t = at_zero
        context, states = block(
            hidden_states=states,
            encoder_hidden_states=context,
            encoder_hidden_states_mask=None,
            temb=embedded,
            image_rotary_emb=rotary,
            modulate_index=index,
        )
    states = module.norm_out(states[:, : target.shape[1]], embedded[: len(x)])
    return _untokened(module.proj_out(states).float(), x, rows, columns)


def _usual(run: Run) -> str:
    """How the model was trained to see references."""
    if run.config["zero_cond_t"]:
        return "index_timestep_zero"
    return "negative_index" if run.config["use_additional_t_cond"] else "index"


def _tokens(x: Tensor) -> tuple[Tensor, int, int]:
    """(B, tokens, 64) with the rows and columns of each frame."""
    if x.dim() == 4:
        return patches(x)
    tokens, rows, columns = patches(x.movedim(2, 1).flatten(0, 1))
    return tokens.reshape(len(x), -1, tokens.shape[-1]), rows, columns


def _picture(reference: Tensor) -> Tensor:
    """A reference as one picture."""
    return reference[:, :, 0] if reference.dim() == 5 else reference


def _untokened(tokens: Tensor, x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse, cut to the size of x."""
    height, width = x.shape[-2:]
    if x.dim() == 4:
        return unpatched(tokens, rows, columns)[..., :height, :width]
    frames = tokens.reshape(-1, rows * columns, tokens.shape[-1])
    pictures = unpatched(frames, rows, columns)[..., :height, :width]
    return pictures.reshape(len(x), -1, *pictures.shape[1:]).movedim(1, 2)


def _places(method: str, references: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """Frame, top and left (in patches) of each reference."""
    sizes = [(picture.shape[-2], picture.shape[-1]) for picture in references]
    found = places(method, (0, 0), sizes, step=-1 if method == "negative_index" else 1)
    return [(place.index, place.top, place.left) for place in (one.in_patches() for one in found)]


def grid(frames: int, rows: int, columns: int, frame: int = 0, top: int = 0, left: int = 0) -> Tensor:
    """(frames · rows · columns, 3): frame, and row and column counted from the middle."""
    places = torch.zeros(frames, rows, columns, 3, dtype=torch.long)
    places[..., 0] = torch.arange(frames)[:, None, None] + frame
    places[..., 1] = (torch.arange(rows) + top - rows // 2)[None, :, None]
    places[..., 2] = (torch.arange(columns) + left - columns // 2)[None, None]
    return places.reshape(-1, 3)
