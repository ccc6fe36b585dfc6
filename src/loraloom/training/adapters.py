"""Adapters of every kind put into a network by peft, as trainable float32 beside frozen base weights.

Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA), LyCORIS (arXiv:2309.14859: LoCon, LoHa, LoKr).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loraloom.errors import InputError
from loraloom.training.settings import AdapterSettings

if TYPE_CHECKING:
    from peft import PeftConfig

NAME = "trained"
"""peft's name of our adapter."""

ATTENTION = (
    r"(transformer_blocks|single_transformer_blocks|attentions|text_model\.encoder\.layers)\.\d+(\.|$)"
)
"""What is trained unless `targets` says otherwise: everything within attention blocks and CLIP's layers."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One network with its adapter. modules: diffusers' path → the peft layer there."""

    network: nn.Module
    modules: Mapping[str, nn.Module]
    settings: AdapterSettings
    scales: Mapping[str, tuple[int, float]] = field(default_factory=lambda: dict[str, tuple[int, float]]())
    """Path → (rank, alpha)."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by "path.name", in a stable order."""
        found: dict[str, nn.Parameter] = {}
        for path, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    found[f"{path}.{name}"] = parameter
        return found


def find_targets(network: nn.Module, settings: AdapterSettings) -> dict[str, tuple[int, float]]:
    """Path of every layer to train → its (rank, alpha). InputError where the expression finds none."""
    try:
        pattern = re.compile(settings.targets or ATTENTION)
    except re.error as error:
        raise InputError(f"adapter.targets is no regular expression: {error}") from error
    conv_rank = settings.conv_rank or (settings.rank if settings.kind == "locon" else 0)
    found: dict[str, tuple[int, float]] = {}
    for path, module in network.named_modules():
        wide = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
        wanted = pattern.search(path) or (conv_rank and not settings.targets and _beside_attention(path))
        if not wanted or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if not wide:
            found[path] = (settings.rank, settings.alpha or settings.rank)
        elif conv_rank:
            found[path] = (conv_rank, settings.conv_alpha or conv_rank)
    if not found:
        names = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
        raise InputError(
            f"no layer matches adapter.targets {pattern.pattern!r}; names look like {', '.join(names[:5])}"
        )
    return found


def _beside_attention(path: str) -> bool:
    """Layers of a UNet that LoCon trains besides attention."""
    return bool(re.search(r"\.(resnets|downsamplers|upsamplers)\.\d+\.", path))


def inject(network: nn.Module, settings: AdapterSettings, seed: int) -> Adapter:
    """Put a fresh adapter into a frozen network: it changes nothing until trained.

    The base stays as it is; only the adapter's parameters require gradients, all float32."""
    from peft import inject_adapter_in_model

    targets = find_targets(network, settings)
    torch.manual_seed(seed)
    inject_adapter_in_model(_config(targets, settings), network, adapter_name=NAME)
    modules = {path: network.get_submodule(path) for path in targets}
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return Adapter(network, modules, settings, targets)


def _config(targets: Mapping[str, tuple[int, float]], settings: AdapterSettings) -> PeftConfig:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    names = list(targets)
    ranks = {re.escape(path): rank for path, (rank, _) in targets.items()}
    alphas = {re.escape(path): alpha for path, (_, alpha) in targets.items()}
    if settings.kind in ("lora", "locon", "dora"):
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha or settings.rank,  # pyright: ignore[reportArgumentType]
            target_modules=names,
            rank_pattern=ranks,
            alpha_pattern=alphas,
            use_dora=settings.kind == "dora",
        )
    given: dict[str, Any] = {
        "r": settings.rank,
        "alpha": settings.alpha or settings.rank,
        "target_modules": names,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    if settings.kind == "loha":
        return LoHaConfig(**given)
    return LoKrConfig(**given, decompose_factor=settings.factor)


def factors(adapter: Adapter) -> Iterator[tuple[str, Mapping[str, Tensor], float | None]]:
    """Per module: path, its tensors under LyCORIS' names (lora_down, dora_scale, hada_…, lokr_…),
    and alpha (None: no scale). Copies on the CPU, float32."""
    for path, module in adapter.modules.items():
        tensors = {name: value.detach().float().cpu().clone() for name, value in _own(module)}
        rank, alpha = adapter.scales[path]
        if adapter.settings.kind in ("lora", "locon", "dora"):
            yield path, _low_rank(tensors), alpha
        elif adapter.settings.kind == "loha":
            yield path, tensors, alpha
        else:
            yield path, *_kronecker(tensors, rank, alpha)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A peft layer's parameters without the adapter's name: "lora_A", "hada_w1_a" …"""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name.split(".")[0], parameter


def _low_rank(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {"lora_down.weight": tensors["lora_A"], "lora_up.weight": tensors["lora_B"]}
    magnitude = tensors.get("lora_magnitude_vector")
    if magnitude is not None:
        flat = magnitude.flatten()
        found["dora_scale"] = flat.reshape(-1, *(1,) * (tensors["lora_B"].ndim - 1))
    return found


def _kronecker(tensors: dict[str, Tensor], rank: int, alpha: float) -> tuple[dict[str, Tensor], float | None]:
    """LoKr: where both factors are whole, readers apply no scale, so ours goes into the first."""
    if "lokr_w1" in tensors and "lokr_w2" in tensors:
        return tensors | {"lokr_w1": tensors["lokr_w1"] * (alpha / rank)}, None
    return tensors, alpha


def trainable_norm(parameters: Mapping[str, nn.Parameter]) -> float:
    """The norm of all trainable parameters together, for the log and the header."""
    return math.sqrt(sum(float(p.detach().square().sum()) for p in parameters.values()))
