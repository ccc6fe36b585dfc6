"""LoRA (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from loraloom.training.kind import LowRankKind


class Lora(LowRankKind):
    """Low-rank factors beside linear layers; beside convolutions where they have a rank."""

    name = "lora"


KIND = Lora()
