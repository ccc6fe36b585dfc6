"""How Chroma is called: with the prompt's hidden states, and guidance for its approximator."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.latent_maps import patches, unpatched
from loraloom.models.parts.references import Place, grid
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

TIME_FACTOR = 1000.0


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states; guidance is 0 where no node says another."""
    guidance = cond.options.get("guidance") or 0.0
    return Inputs(
        {"context": Tokens(cond.context)}, {"guidance": torch.tensor([float(cast(float, guidance))])}
    )


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1]. Spelled out so that times and guidance are embedded unrounded."""
    tokens, rows, columns = patches(x)
    modulation = module.distilled_guidance_layer(_told(module.time_text_embed, time, given).to(run.dtype))
    context = module.context_embedder(given.tokens["context"].values.to(x.device, run.dtype))
    states = module.x_embedder(tokens.to(run.dtype))
    places = torch.cat([torch.zeros(context.shape[1], 3), grid(rows, columns, Place())])
    rotary = module.pos_embed(places.to(x.device))
    single = 3 * len(module.single_transformer_blocks)
    double = 6 * len(module.transformer_blocks)
    for number, block in enumerate(module.transformer_blocks):
        picture = modulation[:, single + 6 * number : single + 6 * number + 6]
        text = modulation[:, single + double + 6 * number : single + double + 6 * number + 6]
        context, states = block(
            hidden_states=states,
            encoder_hidden_states=context,
            temb=torch.cat([picture, text], dim=1),
            image_rotary_emb=rotary,
        )
    joint = torch.cat([context, states], dim=1)
    for number, block in enumerate(module.single_transformer_blocks):
        own = modulation[:, 3 * number : 3 * number + 3]
        joint = block(hidden_states=joint, temb=own, image_rotary_emb=rotary)
    states = module.norm_out(joint[:, context.shape[1] :], modulation[:, -2:])
    return unpatched(module.proj_out(states).float(), rows, columns)[..., : x.shape[-2], : x.shape[-1]]


def _told(embedder: Any, time: Tensor, given: Inputs) -> Tensor:
    """(B, vectors, 64) what the approximator makes each vector of: time, guidance, and its number."""
    guidance = given.vectors["guidance"].to(time)
    both = (embedder.time_proj(time * TIME_FACTOR), embedder.guidance_proj(guidance * TIME_FACTOR))
    numbers = embedder.mod_proj.to(time)[None].expand(len(time), -1, -1)
    return torch.cat([torch.cat(both, dim=1)[:, None].expand(-1, numbers.shape[1], -1), numbers], dim=-1)
