"""Pictures as vision towers of language models read them, and where their tokens stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.encoder import Vision

FRAMES = 2
"""Frames in a patch: a picture is seen twice."""

SMALLEST, LARGEST = 3136, 12_845_056
"""Pixels that a picture is enlarged or reduced to at least and at most."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenPicture:
    """What a tower makes of a picture: its tokens (N, D), in rows × columns, and what is added to the first
    layers of the language model at them, each (N, D)."""

    tokens: Tensor
    rows: int
    columns: int
    deep: tuple[Tensor, ...] = ()


def patches(picture: Tensor, vision: Vision) -> tuple[Tensor, int, int]:
    """(1, H, W, 3) in 0…1 → patches (N, values), ordered by the blocks that are merged, and the counts of
    patches per column and row.

    Sides become multiples of what one token covers, by plain linear interpolation without rounding."""
    height, width = _sides(picture.shape[1], picture.shape[2], vision.patch * vision.merge)
    pixels = F.interpolate(picture[..., :3].movedim(-1, 1).float(), (height, width), mode="bilinear")
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1).to(pixels) for v in (vision.mean, vision.deviation))
    pixels = (pixels - mean) / deviation
    rows, columns = height // vision.patch, width // vision.patch
    merged = pixels.view(
        3,
        rows // vision.merge,
        vision.merge,
        vision.patch,
        columns // vision.merge,
        vision.merge,
        vision.patch,
    )
    ordered = merged.permute(1, 4, 2, 5, 0, 3, 6)  # blocks, patches of a block, channels, pixels
    doubled = ordered.unsqueeze(5).expand(-1, -1, -1, -1, -1, FRAMES, -1, -1)
    return doubled.reshape(rows * columns, -1), rows, columns


def _sides(height: int, width: int, multiple: int) -> tuple[int, int]:
    tall, wide = (max(round(side / multiple) * multiple, multiple) for side in (height, width))
    if tall * wide > LARGEST:
        factor = math.sqrt(height * width / LARGEST)
        tall, wide = (
            max(multiple, math.floor(side / factor / multiple) * multiple) for side in (height, width)
        )
    elif tall * wide < SMALLEST:
        factor = math.sqrt(SMALLEST / (height * width))
        tall, wide = (math.ceil(side * factor / multiple) * multiple for side in (height, width))
    return tall, wide


def see(
    tower: nn.Module,
    picture: Tensor,
    vision: Vision,
    device: torch.device,
    reserve: Callable[[Tensor], None] = lambda patches: None,
) -> SeenPicture:
    """Run a tower of transformers on one picture (1, H, W, 3). reserve: told of the patches before."""
    values, rows, columns = patches(picture, vision)
    reserve(values)
    weight = tower.get_parameter("patch_embed.proj.weight")
    grid = torch.tensor([[1, rows, columns]], device=device)
    out = tower(values.to(device, weight.dtype), grid_thw=grid)
    deep: Sequence[Tensor] = getattr(out, "deepstack_features", None) or ()
    return SeenPicture(out.pooler_output, rows // vision.merge, columns // vision.merge, tuple(deep))


def positions(pieces: Sequence[SeenPicture | int]) -> Tensor:
    """(3, 1, T) frame, row and column of every token. pieces: pictures, and how many words stand between.

    A picture of r × c tokens takes as much room as max(r, c) words."""
    found: list[Tensor] = []
    start = 0
    for piece in pieces:
        if isinstance(piece, int):
            found.append((start + torch.arange(piece)).expand(3, -1))
            start += piece
            continue
        rows = torch.arange(piece.rows).repeat_interleave(piece.columns)
        columns = torch.arange(piece.columns).repeat(piece.rows)
        found.append(start + torch.stack([torch.zeros_like(rows), rows, columns]))
        start += max(piece.rows, piece.columns)
    return torch.cat(found, dim=1)[:, None]
