"""Naming modules in a chosen dialect, and writing LoRA files whole or not at all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from loraloom.atomic_file import write_file
from loraloom.errors import InputError
from loraloom.lora.algebra import Shapes, Tensors
from loraloom.lora.algebras import Found
from loraloom.lora.algorithms import full, lora
from loraloom.lora.component import Component, ComponentName, Shape
from loraloom.lora.factored import Factored
from loraloom.lora.module_names import encoders_in
from loraloom.models.family import LoraFacts
from loraloom.models.recognition import family_named
from loraloom.weights.patch import Target

Dialect = Literal["kohya", "native", "diffusers"]
DIALECTS: tuple[Dialect, ...] = ("kohya", "native", "diffusers")

PRECISIONS: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class Speller:
    """Module names of one model in one dialect."""

    def __init__(self, components: Mapping[ComponentName, Component], dialect: str) -> None:
        if dialect not in DIALECTS:
            raise InputError(f"no such dialect: {dialect!r}; expected one of {', '.join(DIALECTS)}")
        self._components = components
        self.dialect = dialect
        self._paths = {
            name: {target: path for path, target in reversed(list(part.names.items()))}
            for name, part in components.items()
        }

    def name(self, component: ComponentName, target: Target) -> str | None:
        """The module at a target; None where the dialect has no name for it (rows of a fused layer)."""
        return self._text(target) if component == "clip" else self._model(target)

    def parts(self, component: ComponentName, weight: str) -> list[Target]:
        """The targets by which the dialect names parts of a fused weight, in row order."""
        found = [target for target in self._paths[component] if target.weight == weight and target.rows]
        return sorted(found, key=lambda target: target.rows or (0, 0))

    def rows(self, component: ComponentName, weight: str) -> int:
        return self._components[component].shapes[weight][0]

    def _model(self, target: Target) -> str | None:
        family = family_named(self._components["model"].family)
        facts = LoraFacts() if family is None else family.lora
        path = self._paths["model"].get(target)
        stem = target.weight.removesuffix(".weight") if target.rows is None and not target.swapped else None
        match self.dialect:
            case "native":
                return None if stem is None else "diffusion_model." + stem
            case "kohya":
                chosen = path if facts.kohya == "module" else stem
                chosen = chosen or stem
                return None if chosen is None else "lora_unet_" + chosen.replace(".", "_")
            case _:
                return None if path is None else facts.dotted + path

    def _text(self, target: Target) -> str | None:
        path = self._paths["clip"].get(target)
        if self.dialect == "native":
            return "text_encoders." + target.weight.removesuffix(".weight")
        if path is None:
            return None
        encoder, rest = path.split(".", 1)
        present = {known.split(".", 1)[0] for known in self._components["clip"].names}
        order = encoders_in(present)
        number = order.index(encoder) + 1 if encoder in order else 1
        if self.dialect == "kohya":
            prefix = "lora_te_" if len(order) == 1 else f"lora_te{number}_"
            return prefix + rest.replace(".", "_")
        return ("text_encoder." if number == 1 else f"text_encoder_{number}.") + rest


def stated_scale(found: Found, shapes: Shapes, gamma: float) -> dict[str, Tensor]:
    """The tensor (by role) that says γ in a module whose own tensors do not: `alpha`, or `scale` where the
    algebra has no rank that alpha would be divided by. For scales that stood in PEFT's config only."""
    if gamma == 1:
        return {}
    rank = found.algebra.rank(shapes)
    return {"gamma": torch.tensor(gamma)} if rank is None else {"alpha": torch.tensor(gamma * rank)}


def by_ending(
    found: Found, tensors: Tensors, gamma: float, dimensions: int, dialect: str
) -> dict[str, Tensor]:
    """A module's tensors by ending in the dialect. dimensions: of the weight that it changes."""
    wrapper = found.wrapper
    around = set(wrapper.endings.values()) if wrapper is not None else set[str]()
    inner = {role: tensor for role, tensor in tensors.items() if role not in around}
    peft = found.algebra.in_diffusers(inner, gamma) if dialect == "diffusers" else None
    made = found.algebra.written(inner) if peft is None else peft
    if wrapper is None:
        return made
    outer = {role: tensor for role, tensor in tensors.items() if role in around}
    return made | wrapper.written(outer, dimensions, peft=peft is not None)


def factor_tensors(name: str, form: Factored, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Factors of a weight of that shape as a LoRA module, under kohya's endings."""
    made = lora.ALGEBRA.of_factors(form, shape, dtype)
    return {name + ending: tensor for ending, tensor in lora.ALGEBRA.written(made).items()}


def difference_tensors(name: str, delta: Tensor, dtype: torch.dtype, *, on_bias: bool) -> dict[str, Tensor]:
    """A whole difference of a weight, or of its bias, as a module."""
    made = full.ALGEBRA.of_difference(delta.to(dtype), on_bias=on_bias)
    return {name + ending: tensor for ending, tensor in full.ALGEBRA.written(made).items()}


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under its final name once it is complete, with the hash of its tensors.

    Raises FileWriteError."""
    if not tensors:
        raise InputError(f"{path}: nothing to write: no module was left")
    stated = {key: value for key, value in metadata.items() if key not in _HASH_KEYS}
    stated.setdefault("format", "pt")
    plain = _apart(tensors)
    data = save(plain, stated)
    length = int.from_bytes(data[:8], "little")
    stated["sshs_model_hash"] = hashlib.sha256(data[8 + length :]).hexdigest()
    data = save(plain, stated)
    write_file(path, data)


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """InputError where writing `out` would overwrite one of the files that it is made of."""
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise InputError(f"{out}: this is one of the files to read; give --out another name")


def refuse_not_finite(what: str, tensors: Iterable[Tensor], gamma: float = 1.0) -> None:
    """InputError where tensors or a scale hold NaN or infinity. what: the module, for the message."""
    if not math.isfinite(gamma) or any(
        tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(torch.float32)).all())
        for tensor in tensors
    ):
        raise InputError(f"{what} holds NaN or infinity: the training diverged or the file is damaged")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares memory with another: the format's writer refuses those."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.contiguous()
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return apart


_HASH_KEYS = frozenset({"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"})
