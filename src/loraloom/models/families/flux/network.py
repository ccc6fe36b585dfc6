"""Flux.1's transformer as sampling uses it: latents as patches, positions, guidance and the pooled prompt."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import InputError
from loraloom.models.diffusion_network import Run
from loraloom.models.parts.flux_times import embedded, guidance_of
from loraloom.models.parts.latent_maps import PATCH, fit, patches, unpatched
from loraloom.models.parts.references import Place, grid, places, placing, references
from loraloom.models.picture_encoders import STYLES, StyleTokens
from loraloom.sampling.inputs import Inputs, Tokens, repeated
from loraloom.sampling.types import Cond

PLACINGS = ("offset", "index", "uxo")


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states and pooled vector, guidance for models with it, the given picture for fill
    and control models, and reference pictures for the others (Kontext, USO)."""
    width = run.number("pooled_projection_dim")
    vectors = {"pooled": torch.zeros(1, width) if cond.pooled is None else cond.pooled[:, :width]}
    vectors |= guidance_of(cond, run)
    extra = run.number("in_channels") // PATCH**2 - run.latents.channels
    maps = {"picture": _given_picture(cond, run, extra)} if extra > 0 else {}
    shown = references(cond, run)
    if shown and maps:
        raise InputError(
            "this Flux.1 model has a picture laid beside its latent (Fill, Canny, Depth) and looks at no "
            "references: leave ReferenceLatent out, or take Kontext"
        )
    method = placing(cond, PLACINGS, "offset") if shown else ""
    bias = cond.options.get("attention_mask")
    if isinstance(bias, Tensor):
        if bias.shape[-1] != cond.context.shape[1] + 1:
            raise InputError(
                f"StyleModelApply said how {bias.shape[-1] - 1} tokens are looked at, and the prompt has "
                f"{cond.context.shape[1]} by now: let it be the last node that adds tokens"
            )
        if run.options.get(STYLES):
            raise InputError(
                "StyleModelApply by attn_bias and USOStyleReference do not go together; take one"
            )
        vectors["bias"] = bias.float()
    context = Tokens(cond.context, "equal" if "bias" in vectors else "repeat")
    return Inputs({"context": context}, vectors, maps, shown, method)


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 16, H, W), time (B,) in [0, 1]. Spelled out because diffusers' own forward pass rounds times and
    guidance to the computing type before it embeds them, which in bfloat16 moves them by up to 0.4 %."""
    whole = torch.cat([x, *(more.to(x) for more in given.maps.values())], dim=1)
    (tokens, rows, columns), *others = (patches(picture.to(x)) for picture in (whole, *given.references))
    context = module.context_embedder(given.tokens["context"].values.to(x.device, run.dtype))
    context = torch.cat([*_styles(run, context), context], dim=1)
    condition = _embed(module.time_text_embed, time, given, run)
    new = tokens.shape[1]
    states = module.x_embedder(torch.cat([tokens, *(more for more, _, _ in others)], dim=1).to(run.dtype))
    laid = places(given.placing, (rows * PATCH, columns * PATCH), [r.shape[-2:] for r in given.references])
    grids = [grid(rows, columns, Place())]
    for (_, height, width), place in zip(others, laid, strict=True):
        grids.append(grid(height, width, place.in_patches()))
    rotary = module.pos_embed(torch.cat([torch.zeros(context.shape[1], 3), *grids]).to(x.device))
    bias = _bias(given, context.shape[1], states)
    for block in (*module.transformer_blocks, *module.single_transformer_blocks):
        context, states = block(
            hidden_states=states,
            encoder_hidden_states=context,
            temb=condition,
            image_rotary_emb=rotary,
            joint_attention_kwargs=None if bias is None else {"attention_mask": bias},
        )
    output = module.proj_out(module.norm_out(states[:, :new], condition)).float()
    return unpatched(output, rows, columns)[..., : x.shape[-2], : x.shape[-1]]


def _styles(run: Run, context: Tensor) -> list[Tensor]:
    """The tokens of USOStyleReference, those of the last node first, for as many rows as the text has."""
    told = cast("tuple[StyleTokens, ...]", run.options.get(STYLES, ()))
    return [repeated(one.tokens.to(context), len(context)) for one in reversed(told)]


def _bias(given: Inputs, text: int, states: Tensor) -> Tensor | None:
    """(B, 1, T, T) what is added to the logarithms of attention between all tokens, where a style model says
    it: for the text's tokens one by one, for those of pictures in one."""
    said = given.vectors.get("bias")
    if said is None:
        return None
    places = torch.arange(text + states.shape[1], device=states.device).clamp(max=text)
    return said.to(states)[:, places][:, :, places][:, None]


def _embed(embedders: Any, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """(B, width) what the blocks are modulated by: time, guidance and the pooled prompt."""
    pooled = given.vectors["pooled"].to(time.device, run.dtype)
    return embedded(embedders, time, given, run) + embedders.text_embedder(pooled)


def _given_picture(cond: Cond, run: Run, channels: int) -> Tensor:
    """Latents of the picture to start from and, for fill models, the mask as 64 channels of pixels."""
    x, side = run.latent, run.latents.pixels
    picture = cond.options.get("concat_latent_image")
    given = fit(picture.to(x), x) if isinstance(picture, Tensor) else torch.zeros_like(x)
    given = run.latents.into(given)
    if channels <= run.latents.channels:
        return given
    mask = cond.options.get("concat_mask", run.sample.mask)
    mask = (
        mask.to(x).reshape(-1, 1, *mask.shape[-2:]) if isinstance(mask, Tensor) else torch.ones_like(x[:, :1])
    )
    whole = x.new_empty(len(x), 1, x.shape[-2] * side, x.shape[-1] * side)
    return torch.cat([given, F.pixel_unshuffle(fit(mask, whole), side)], dim=1)
