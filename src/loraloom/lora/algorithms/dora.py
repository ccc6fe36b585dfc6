"""DoRA: W' = m ⊙ V / ‖V‖ with V = W + γΔ; the strength leads from W to W'.

Liu et al. 2024 (arXiv:2402.09353). The norm runs over each output row (LyCORIS's default today, PEFT,
ai-toolkit) or over each input channel (OneTrainer's default, early kohya and LyCORIS), which the shape of m
tells: [out, 1, …] or [1, in, …]. One-dimensional magnitudes, and PEFT's in any shape, are per output row.
Any other algebra can give the direction Δ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.lora.algebra import Additive, Change, Ingredients, Nothing


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
        target = self.direction.delta(weight).add_(weight)
        norm = _norm(weight if self.base_norm else target, on_input=self.on_input)
        norm += torch.finfo(torch.float32).eps
        return target.mul_(self.magnitude.to(weight) / norm).sub_(weight)


def _norm(weight: Tensor, *, on_input: bool) -> Tensor:
    """Frobenius norm of each output row, or of each input channel, shaped to broadcast."""
    kept = 1 if on_input else 0
    axes = [axis for axis in range(weight.dim()) if axis != kept]
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=True)


def wrap(direction: Change, given: Ingredients) -> Change:
    """The direction under the module's magnitude ("dora" or "magnitude" among its tensors)."""
    if given.comfyui:
        return _as_comfyui(direction, given)
    if "magnitude" in given.tensors:
        return Decomposed(direction, _shaped(given.exact("magnitude"), given, on_input=False), on_input=False)
    stored = given.exact("dora")
    on_input = _is_per_input(stored, given)
    return Decomposed(direction, _shaped(stored, given, on_input=on_input), on_input)


def _is_per_input(stored: Tensor, given: Ingredients) -> bool:
    out = given.shape[0]
    if stored.dim() >= 2 and stored.numel() == given.shape[1]:
        return stored.shape[0] == 1 and (out != 1 or stored.numel() != 1)
    return stored.numel() != out


def _shaped(stored: Tensor, given: Ingredients, *, on_input: bool) -> Tensor:
    rest = [1] * (len(given.shape) - 2)
    return stored.reshape(1, -1, *rest) if on_input else stored.reshape(-1, 1, *rest)


def _as_comfyui(direction: Change, given: Ingredients) -> Change:
    """v0.3.64 reads `dora_scale` only, broadcasts it as stored, and takes ‖W‖ on the output axis."""
    if "dora" not in given.tensors:
        return direction
    stored = given.exact("dora")
    on_output = stored.dim() > 0 and stored.shape[0] == given.shape[0]
    try:
        torch.broadcast_shapes(stored.shape, given.shape)
    except RuntimeError:
        return Nothing()
    return Decomposed(direction, stored, on_input=not on_output, base_norm=on_output)
