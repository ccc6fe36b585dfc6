"""LoHa (LyCORIS, arXiv:2309.14859): the elementwise product of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraloom.models.library_class import library_class
from loraloom.training.kind import Kind

if TYPE_CHECKING:
    from peft import PeftConfig

    from loraloom.training.settings import AdapterSettings


class Loha(Kind):
    """Rank r² from two pairs of factors of rank r."""

    name = "loha"
    algebra = "loha"
    algorithm = "loha"

    def config(self, given: Mapping[str, Any], alpha: Any, settings: AdapterSettings) -> PeftConfig:
        return library_class("peft:LoHaConfig")(**given, alpha=alpha)


KIND = Loha()
