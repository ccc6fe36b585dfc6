"""What runs beside a layer where a change has no factors: a whole difference of its weight or bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.residency.copies import Copied


@dataclass(slots=True)
class WholeChange:
    """(layer, x) → what a weight's difference adds to the layer's output."""

    difference: Copied

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        difference = self.difference.at(x)
        if isinstance(layer, nn.Conv2d):
            kernel = difference.reshape(layer.weight.shape)
            return F.conv2d(x, kernel, stride=layer.stride, padding=layer.padding)
        if isinstance(layer, nn.GroupNorm):
            normal = F.group_norm(x, layer.num_groups, eps=layer.eps)
            return normal * difference.reshape(-1, *[1] * (x.ndim - 2))
        if isinstance(layer, nn.LayerNorm):
            return F.layer_norm(x, layer.normalized_shape, eps=layer.eps) * difference
        return F.linear(x, difference.flatten(1))


@dataclass(slots=True)
class BiasChange:
    """The same of a bias."""

    difference: Copied

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        difference = self.difference.at(x)
        is_image = isinstance(layer, nn.Conv2d | nn.GroupNorm)
        return difference[:, None, None] if is_image else difference
