"""What acts on a network's module during each call: attention, FreeU, merged tokens, LoRAs beside its
weights."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from loraloom.models.computing import Computing
from loraloom.models.diffusion_network import Around
from loraloom.models.freeu import FreeU
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.unmerged import Unmerged
from loraloom.models.token_merging import TokenMerging, has_levels


def acting(
    model: DiffusionModel,
    unmerged: Unmerged | None,
    attention: Callable[[], AbstractContextManager[Any]],
    computing: Computing,
) -> Around:
    """What acts on a network's module during each call."""
    freeu = model.option("freeu")
    found: list[Around] = []
    if isinstance(freeu, FreeU):
        found.append(lambda module, rows: freeu.on(module))
    if "tokens" in computing.fast and has_levels(model.blueprint.config):
        merging = TokenMerging()
        found.append(lambda module, rows: merging.on(module))
    if unmerged is not None:
        if computing.compiled:  # what was compiled knows the layers as they were then
            found.append(lambda module, rows: torch.compiler.set_stance("force_eager"))
        found.append(unmerged.on)

    @contextmanager
    def around(module: nn.Module, rows: int) -> Generator[None]:
        with ExitStack() as stack:
            stack.enter_context(attention())
            for act in found:
                stack.enter_context(act(module, rows))
            yield

    return around
