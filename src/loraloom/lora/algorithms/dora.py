"""DoRA: W' = m ⊙ V / ‖V‖ with V = W + γΔ; the strength leads from W to W'.

Liu et al. 2024 (arXiv:2402.09353). The norm runs over each output row (LyCORIS's default today, PEFT,
ai-toolkit) or over each input channel (OneTrainer's default, early kohya and LyCORIS), which the shape of m
tells: [out, 1, …] or [1, in, …]. One-dimensional magnitudes, and PEFT's in any shape, are per output row.
Any other algebra can give the direction Δ.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loraloom.lora.algebra import Change, Ingredients, Shapes, Tensors, Wrapper
from loraloom.lora.changes import Additive, Nothing
from loraloom.lora.component import Shape
from loraloom.lora.shape_check import said

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Decomposed(Additive):
    """A direction and its trained magnitude, shaped to broadcast over the weight.

    base_norm: divide by ‖W‖ instead of ‖V‖ (ComfyUI v0.3.64 on the output axis).
    """

    direction: Change
    magnitude: Tensor
    on_input: bool
    base_norm: bool = False

    def delta(self, weight: Tensor) -> Tensor:
        import torch

        target = self.direction.delta(weight).add_(weight)
        norm = _norm(weight if self.base_norm else target, on_input=self.on_input)
        norm += torch.finfo(torch.float32).eps
        return target.mul_(self.magnitude.to(weight) / norm).sub_(weight)


def _norm(weight: Tensor, *, on_input: bool) -> Tensor:
    """Frobenius norm of each output row, or of each input channel, shaped to broadcast."""
    import torch

    kept = 1 if on_input else 0
    axes = [axis for axis in range(weight.dim()) if axis != kept]
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=True)


class Dora(Wrapper):
    """A magnitude as LyCORIS and kohya write it (`dora_scale`), or as PEFT does."""

    name = "dora"
    title = "DoRA"
    endings = {
        ".dora_scale": "dora",
        ".lora_magnitude_vector": "magnitude",
        ".lora_magnitude_vector.weight": "magnitude",
        ".magnitude": "magnitude",
    }
    peft = ("lora_magnitude_vector",)

    def misfit(self, shapes: Shapes, weight: Shape) -> str | None:
        """One value per output row, or per input channel as [1, in, 1, 1]."""
        shape = shapes.get("magnitude", shapes.get("dora", ()))
        if len(weight) >= 2:
            on_input = "magnitude" not in shapes and _is_per_input(shape, weight)
            if prod(shape) == weight[1 if on_input else 0]:
                return None
        return f"its DoRA magnitude has {prod(shape)} values, the weight is {said(weight)}"

    def wrap(self, direction: Change, given: Ingredients) -> Change:
        if given.comfyui:
            return _as_comfyui(direction, given)
        role = "magnitude" if "magnitude" in given.tensors else "dora"
        stored = given.exact(role)
        on_input = role == "dora" and _is_per_input(tuple(stored.shape), given.shape)
        rest = [1] * (len(given.shape) - 2)
        shaped = stored.reshape(1, -1, *rest) if on_input else stored.reshape(-1, 1, *rest)
        return Decomposed(direction, shaped, on_input)

    def written(self, tensors: Tensors, dimensions: int, *, peft: bool) -> dict[str, Tensor]:
        """Kohya's name and shape of it, PEFT's beside PEFT's factors, which it has for output rows only."""
        made: dict[str, Tensor] = {}
        for role, tensor in tensors.items():
            if role == "magnitude":
                rows = tensor if peft else tensor.reshape(-1, *[1] * (dimensions - 1))
                made[".lora_magnitude_vector" if peft else ".dora_scale"] = rows
            elif peft and tensor.shape[:1] != (1,):
                made[".lora_magnitude_vector"] = tensor.flatten()
            else:
                made[".dora_scale"] = tensor
        return made


def _is_per_input(stored: Shape, weight: Shape) -> bool:
    if len(stored) >= 2 and prod(stored) == weight[1]:
        return stored[0] == 1 and (weight[0] != 1 or prod(stored) != 1)
    return prod(stored) != weight[0]


def _as_comfyui(direction: Change, given: Ingredients) -> Change:
    """v0.3.64 reads `dora_scale` only, broadcasts it as stored, and takes ‖W‖ on the output axis."""
    import torch

    if "dora" not in given.tensors:
        return direction
    stored = given.exact("dora")
    on_output = stored.dim() > 0 and stored.shape[0] == given.shape[0]
    try:
        torch.broadcast_shapes(stored.shape, given.shape)
    except RuntimeError:
        return Nothing()
    return Decomposed(direction, stored, on_input=not on_output, base_norm=on_output)


ALGEBRA = Dora()
