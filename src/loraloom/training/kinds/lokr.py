"""LoKr (LyCORIS, arXiv:2309.14859): the Kronecker product of a small block and a larger, low-rank one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraloom.models.library_class import library_class
from loraloom.training.kind import Kind

if TYPE_CHECKING:
    from peft import PeftConfig

    from loraloom.training.settings import AdapterSettings


class Lokr(Kind):
    """`factor`: the size of the small block; -1: as square as possible."""

    name = "lokr"
    algebra = "lokr"
    algorithm = "lokr"
    settings = ("factor",)

    def config(self, given: Mapping[str, Any], alpha: Any, settings: AdapterSettings) -> PeftConfig:
        return library_class("peft:LoKrConfig")(**given, alpha=alpha, decompose_factor=settings.factor)


KIND = Lokr()
