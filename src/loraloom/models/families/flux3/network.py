"""How FLUX 3 is called: three kinds of tokens, of which only those of the new picture have a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.diffusion_network import Run
from loraloom.models.parts.flux_times import embed_times
from loraloom.models.parts.latent_maps import of_pixel_tokens, pixel_tokens
from loraloom.models.parts.references import Place, grid, placing, references
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.types import Cond

PICTURE_STEP = 0.5
"""Between neighbours on a picture's axes."""

LEVELS = "levels"
"""The run's noise levels, for networks that are told the level which a step leads to."""


class WholeNorm(nn.RMSNorm):
    """A norm of float32 states, by weights of any type."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, list(self.normalized_shape), self.weight.to(x), self.eps)


def keep_norms_whole(module: nn.Module) -> None:
    """Queries and keys are normed in float32, as the model was trained, whatever the weights are kept in."""
    for name, norm in [*module.named_modules()]:
        if isinstance(norm, nn.RMSNorm):
            module.set_submodule(name, WholeNorm(list(norm.normalized_shape), norm.eps))


def inputs(cond: Cond, run: Run) -> Inputs:
    """The prompt's hidden states, the reference pictures, and the levels of the run for distilled models."""
    vectors: dict[str, Tensor] = {}
    if run.config["flow_map"]:
        levels = run.sample.sigmas
        vectors[LEVELS] = torch.zeros(1, 1) if levels is None else levels[None].float()
    shown = references(cond, run)
    method = placing(cond, ("index",), "index") if shown else ""
    return Inputs({"context": Tokens(cond.context)}, vectors, references=shown, placing=method)


def forward(module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
    """x (B, 128, H, W), time (B,) in [0, 1]. Spelled out because diffusers' own forward pass rounds times to
    the computing type before it embeds them."""
    now, still = _times(module, time, given, run)
    text = module.context_embedder(given.tokens["context"].values.to(x.device, run.dtype))
    words = torch.zeros(text.shape[1], 4, device=x.device)
    words[:, 3] = torch.arange(text.shape[1], device=x.device)
    new = module.x_embedders["image"](pixel_tokens(x).to(run.dtype))
    ids = {"txt": words, "image": positions([x], 0).to(x.device)}
    streams = {"txt": (text, still), "image": (new, now)}
    if given.references:
        shown = torch.cat([pixel_tokens(reference) for reference in given.references], dim=1).to(
            x.device, run.dtype
        )
        streams["image_cond"] = module.x_embedders["image_cond"](shown), still
        ids["image_cond"] = positions(given.references, 1).to(x.device)

    rotary = {kind: module.pos_embed(own) for kind, own in ids.items()}
    states: dict[str, Tensor] = {}
    for kind, (tokens, when) in streams.items():
        on = module.early_stream_modulations[kind](F.silu(when))
        for block in module.txt_mode_blocks if kind == "txt" else module.mode_blocks[kind]:
            tokens = block(tokens, on, rotary[kind])
        states[kind] = tokens
    text, pictures = states.pop("txt"), torch.cat([*states.values()], dim=1)
    modulations = {
        kind: module.single_stream_modulations[kind](F.silu(when)).expand(-1, tokens.shape[1], -1)
        for kind, (tokens, when) in streams.items()
    }
    on_text, on_pictures = modulations.pop("txt"), torch.cat([*modulations.values()], dim=1)
    joint = tuple(torch.cat(parts) for parts in zip(*rotary.values(), strict=True))
    for block in module.single_transformer_blocks:
        text, pictures = block(pictures, text, on_pictures, on_text, joint)
    output = module.proj_out(module.norm_out(pictures[:, : new.shape[1]], now)).float()
    return of_pixel_tokens(output, x)


def _times(module: Any, time: Tensor, given: Inputs, run: Run) -> tuple[Tensor, Tensor]:
    """(B, 1, width) each: the embedded time of the new picture, and that of everything else: 0."""

    def embedded(embedder: Any, times: Tensor) -> Tensor:
        return embedder(embed_times(times).to(run.dtype))[:, None]

    now = embedded(module.timestep_embedder, time)
    still = embedded(module.timestep_embedder, torch.zeros_like(time))
    if (levels := given.vectors.get(LEVELS)) is not None:
        target = embedded(module.target_timestep_embedder, following(levels.to(time), time))
        return now + target, still + target
    return now, still


def following(levels: Tensor, time: Tensor) -> Tensor:
    """(B,): of the levels (B, S), the highest one below each time; 0 where there is none."""
    below = levels.masked_fill(levels >= time[:, None] - 1e-6, 0.0)
    return below.amax(dim=1)


def positions(pictures: list[Tensor] | tuple[Tensor, ...], first: int) -> Tensor:
    """(tokens, 4): (0, row, column, -number) of pictures, numbered from `first`."""
    found: list[Tensor] = []
    for number, picture in enumerate(pictures, first):
        places = grid(picture.shape[-2], picture.shape[-1], Place(), 4) * PICTURE_STEP
        places[:, 3] = -number
        found.append(places)
    return torch.cat(found)
