"""LoRA and LoCon: ΔW = γ · up · down, with a convolution's kernel in `down` or in a Tucker core between.

Hu et al. 2021 (arXiv:2106.09685); LyCORIS (arXiv:2309.14859), whose core contracts as
ΔW[o, i, …] = Σ up[o, p] · mid[p, q, …] · down[q, i].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Algebra, Ingredients, Part, Shapes, Tensors
from loraloom.lora.changes import Additive
from loraloom.lora.component import Shape
from loraloom.lora.factored import Factored, through
from loraloom.lora.shape_check import dimension, misfit_of_matrix, said
from loraloom.weights.patch import Factors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_XLABS = re.compile(r"(\.processor\.(?:qkv|proj))_lora([12])\.(up|down)\.weight$")
_NUMBERED = re.compile(r"\.lora_(up|down)\.(\d+)\.weight$")


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Additive):
    """ΔW = γ · up · down, reshaped to the weight, which is first padded with zeros where ΔW is larger."""

    up: Tensor
    down: Tensor
    gamma: float
    shape: Shape

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        if tuple(weight.shape) != self.shape:
            weight = _enlarge(weight, self.shape)
        flat = weight.view(self.shape[0], -1)
        flat.addmm_(self.up.to(weight), self.down.to(weight), alpha=strength * self.gamma)
        return weight

    def delta(self, weight: Tensor) -> Tensor:
        product = self.up.to(weight) @ self.down.to(weight)
        return product.mul_(self.gamma).view(self.shape)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """‖up · down‖² = tr((upᵀ up)(down downᵀ)): rank × rank products instead of the whole."""
        up, down = self.up.float(), self.down.float()
        return abs(self.gamma) * math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))

    def factors(self) -> Factors | None:
        return Factors(self.down.float(), self.up.float() * self.gamma)


@dataclass(frozen=True, slots=True, eq=False)
class Tucker(Additive):
    """ΔW = γ · up ×₁ core ×₂ down: a k×k kernel through a small core."""

    up: Tensor
    core: Tensor
    down: Tensor
    gamma: float
    shape: Shape

    def delta(self, weight: Tensor) -> Tensor:
        made = self.up.to(weight) @ through(self.core.to(weight), self.down.to(weight))
        return made.mul_(self.gamma).view(self.shape)

    def factors(self) -> Factors | None:
        down = through(self.core.float(), self.down.float())
        return Factors(down, self.up.float() * self.gamma)


def _enlarge(weight: Tensor, shape: Shape) -> Tensor:
    larger = weight.new_zeros(shape)
    larger[tuple(slice(0, size) for size in weight.shape)] = weight
    return larger


class Lora(Algebra):
    """Up (out, rank) and down (rank, in · kernel), or down (rank, in) behind a core `mid`."""

    name = "lora"
    title = "LoRA"
    endings = {
        ".lora_up.weight": "up",
        ".lora_down.weight": "down",
        ".lora_mid.weight": "mid",
        ".lora_B.weight": "up",
        ".lora_A.weight": "down",
        ".lora_B": "up",
        ".lora_A": "down",
        ".lora_b.weight": "up",
        ".lora_a.weight": "down",
        ".lora_b": "up",
        ".lora_a": "down",
        ".lora.up.weight": "up",
        ".lora.down.weight": "down",
        "_lora.up.weight": "up",
        "_lora.down.weight": "down",
        ".lora_linear_layer.up.weight": "up",
        ".lora_linear_layer.down.weight": "down",
        ".lora_embedding_B": "up",
        ".lora_embedding_A": "down",
        ".reshape_weight": "reshape_weight",
    }
    needs = ("up down",)
    takes = "mid alpha gamma reshape_weight"
    summands = ("up down mid",)
    peft = ("lora_A", "lora_B", "lora_a", "lora_b", "lora_embedding_A", "lora_embedding_B")
    scaled = True
    in_parts = True
    wrapped = True

    def split(self, key: str) -> tuple[str, str] | None:
        """XLabs's two streams become the modules "…qkv1" and "…qkv2", kohya's parts the roles "up.0", …"""
        if found := _XLABS.search(key):
            return key[: found.start()] + found[1] + found[2], found[3]
        if found := _NUMBERED.search(key):
            return key[: found.start()], f"{found[1]}.{found[2]}"
        return None

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        up, down = shapes["up"], shapes["down"]
        if len(up) < 2 or len(down) < 2 or 0 in up or 0 in down:
            return f"factors of shapes {said(up)} and {said(down)} are no matrices"
        rank, columns = down[0], prod(down[1:])
        if "mid" in shapes:
            mid = shapes["mid"]
            if len(mid) < 3 or mid[:2] != (up[1], rank) or prod(up) != up[0] * up[1] or columns != down[1]:
                return f"its middle factor {said(mid)} does not join {said(up)} and {said(down)}"
            if prod(mid[2:]) != prod(weight[2:]):
                return f"its middle factor {said(mid)} has another kernel than the weight {said(weight)}"
            return misfit_of_matrix((up[0], columns * prod(mid[2:])), weight)
        if prod(up[1:]) != rank:
            return f"rank {prod(up[1:])} of the up factor is not rank {rank} of the down factor"
        return misfit_of_matrix((up[0], columns), weight)

    def inputs(self, shapes: Shapes) -> int | None:
        return dimension(shapes["down"], -1)

    def rank(self, shapes: Shapes) -> int | None:
        return dimension(shapes["down"], 0)

    def part_rows(self, shapes: Shapes) -> int:
        return dimension(shapes["up"], 0) or 0

    def enlarged(self, shapes: Shapes, weight: Shape, *, control: bool) -> Shape:
        """Flagged by `reshape_weight`; BFL's control files do it without."""
        if not ("reshape_weight" in shapes or control) or "mid" in shapes:
            return weight
        made = self.made_for(shapes)
        made = made if len(made) == len(weight) else (made[0], *weight[1:])
        larger = len(made) == len(weight) and all(new >= old for new, old in zip(made, weight, strict=True))
        return made if larger else weight

    def made_for(self, shapes: Shapes) -> Shape:
        """The shape that the product has."""
        rows, columns = self.part_rows(shapes), shapes["down"][1:]
        return (rows, *columns[:1], *shapes["mid"][2:]) if "mid" in shapes else (rows, *columns)

    def build(self, given: Ingredients) -> LowRank | Tucker:
        if "mid" in given.tensors:
            up, down = given.matrix("up"), given.matrix("down")
            return Tucker(up, given.exact("mid"), down, given.gamma, given.shape)
        up, down = given.tensors["up"].flatten(1), given.tensors["down"].flatten(1)
        return LowRank(up, down, given.gamma, given.shape)

    def factored(self, tensors: Tensors, shape: Shape) -> Factored:
        up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
        if "mid" not in tensors:
            return Factored(up, down)
        core = tensors["mid"]
        return Factored(up, down, core.reshape(*core.shape[:2], *shape[2:]))

    def of_factors(self, form: Factored, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
        """Factors for a weight of that shape as the tensors of a module; alpha is the rank, so γ is 1."""
        ones = [1] * (len(shape) - 2)
        columns = shape[1:] if form.core is None else (shape[1], *ones)
        made = {
            "up": form.up.reshape(*form.up.shape, *ones).to(dtype),
            "down": form.down.reshape(len(form.down), *columns).to(dtype),
            "alpha": form.up.new_tensor(float(len(form.down))),
        }
        return made if form.core is None else made | {"mid": form.core.to(dtype)}

    def in_diffusers(self, tensors: Tensors, gamma: float) -> dict[str, Tensor] | None:
        """γ goes into the up factor, in float32 where the stored type could not hold the product."""
        if "mid" in tensors:
            return None
        made = {role: tensor for role, tensor in tensors.items() if role not in ("alpha", "gamma")}
        if gamma != 1:
            exact = self.times(made, gamma)["up"]
            stored = exact.to(made["up"].dtype)
            made["up"] = stored if bool((stored.float() == exact).all()) else exact
        up, down = made.pop("up"), made.pop("down")
        return {".lora_B.weight": up, ".lora_A.weight": down, **self.written(made)}

    def is_by_rows(self, tensors: Tensors) -> bool:
        return "mid" not in tensors

    def rows(self, tensors: Tensors, spans: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The rows of up, all of down."""
        import torch

        return {**tensors, "up": torch.cat([tensors["up"][begin:end] for begin, end in spans])}

    def joined(self, parts: Sequence[Part], rows: int) -> dict[str, Tensor]:
        """Ups on the diagonal, downs below each other."""
        import torch

        rank = sum(len(part.tensors["down"]) for part in parts)
        up, gamma = parts[0].tensors["up"].new_zeros(rows, rank), parts[0].gamma
        column = 0
        for part in parts:
            width = len(part.tensors["down"])
            block = part.tensors["up"].flatten(1)
            if part.gamma != gamma:
                up, block = up.float(), block.float() * (part.gamma / gamma)
            up[part.begin : part.end, column : column + width] = block
            column += width
        made = {"up": up, "down": torch.cat([part.tensors["down"] for part in parts])}
        if gamma != 1 or "alpha" in parts[0].tensors:
            made["alpha"] = torch.tensor(gamma * rank)
        return made


ALGEBRA = Lora()
