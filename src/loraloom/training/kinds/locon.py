"""LoCon (LyCORIS, arXiv:2309.14859): LoRA of the convolutions too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.training.kind import LowRankKind

if TYPE_CHECKING:
    from loraloom.training.settings import AdapterSettings


class Locon(LowRankKind):
    """Convolutions have the rank of the linear layers unless they are given their own."""

    name = "locon"

    def conv_rank(self, settings: AdapterSettings) -> int:
        return settings.conv_rank or settings.rank


KIND = Locon()
