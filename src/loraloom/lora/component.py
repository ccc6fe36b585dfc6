"""What a LoRA may change: the weights of a loaded model part and every name that files use for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from loraloom.weights.patch import NameTable, Target

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.weights.packed import Packed

Shape: TypeAlias = "tuple[int, ...]"

ComponentName: TypeAlias = Literal["model", "clip"]


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a model as a LoRA file sees it; a model family supplies it as plain data, without torch.

    family: the family's name as `lora.origin.FAMILIES` lists it ("sd15", "sdxl", "flux").
    shapes: native weight name → shape, of every weight of the part. The native names themselves are
        understood as module names without further entries: "input_blocks.1.1.proj_in.weight" answers to
        "input_blocks.1.1.proj_in", and "double_blocks.0.img_attn.norm.key_norm.scale" to itself.
    names: further module names → target: diffusers' names, with rows where the native weight is fused.

    read: native weight → its values, mapped where possible; None where only the header is at hand.
    quantised: native weight → it as it is stored, where it is quantised.

    For the diffusion network ("model") names are module paths ("down_blocks.0.attentions.0.proj_in").
    For the text encoders ("clip") every module path and every native weight name starts with the encoder:
    "clip_l.text_model.encoder.layers.0.mlp.fc1", "clip_g.…", "t5xxl.encoder.block.0.layer.0.SelfAttention.q";
    what follows is the Hugging Face name.
    """

    family: str
    shapes: Mapping[str, Shape]
    names: NameTable = field(default_factory=lambda: dict[str, Target]())
    read: Callable[[str], Tensor] | None = None
    quantised: Callable[[str], Packed | None] | None = None

    def find(self, path: str) -> Target | None:
        """The target of a module path, or of a parameter path that ends in .bias or .scale."""
        target = self.names.get(path)
        if target is not None and target.weight in self.shapes:
            return target
        for weight in (path + ".weight", path):
            if weight in self.shapes:
                return Target(weight)
        if path.endswith(".bias"):
            owner = self.names.get(path.removesuffix(".bias"))
            if owner is not None and (bias := bias_of(owner.weight)) in self.shapes:
                return Target(bias, owner.rows, owner.swapped)
        return None

    def shape_of(self, target: Target) -> Shape:
        """The shape of the rows that the target names."""
        shape = self.shapes[target.weight]
        if target.rows is None:
            return shape
        return (target.rows[1] - target.rows[0], *shape[1:])


def bias_of(weight: str) -> str:
    """The name of the bias that belongs to a weight: "….weight" → "….bias", "…_weight" → "…_bias"."""
    return weight.removesuffix("weight") + "bias" if weight.endswith("weight") else weight + ".bias"


def owner_of(name: str) -> str:
    """The name of the weight that a bias belongs to; other names are their own."""
    return name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
