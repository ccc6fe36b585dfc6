"""What becomes of a caption each time its picture is seen: shuffled, thinned, or left out altogether."""

from __future__ import annotations

import torch

from loraloom.training.dataset import tags
from loraloom.training.settings import FolderSettings


def draw_caption(caption: str, settings: FolderSettings, generator: torch.Generator) -> str:
    """The caption for one use. The first `keep_tokens` tags stay where they are and are never dropped.

    Always takes the same from `generator`, so that a setting changes nothing but what it says."""
    dropped = float(torch.rand((), generator=generator)) < settings.caption_dropout
    seed = int(torch.randint(2**62, (), generator=generator))
    if dropped:
        return ""
    if not settings.shuffle and not settings.tag_dropout:
        return caption
    parts = tags(caption)
    kept, rest = parts[: settings.keep_tokens], parts[settings.keep_tokens :]
    own = torch.Generator().manual_seed(seed)
    if settings.tag_dropout:
        chances = torch.rand(len(rest), generator=own).tolist()
        rest = [tag for tag, chance in zip(rest, chances, strict=True) if chance >= settings.tag_dropout]
    if settings.shuffle:
        rest = [rest[i] for i in torch.randperm(len(rest), generator=own).tolist()]
    return ", ".join([*kept, *rest])
