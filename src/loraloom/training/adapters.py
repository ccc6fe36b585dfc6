"""Adapters of every kind put into a network by peft, as trainable float32 beside frozen base weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from loraloom.errors import InputError
from loraloom.lora.algebras import Found, registry
from loraloom.lora.writing import Dialect, by_ending
from loraloom.models.library_class import library_class
from loraloom.training.kind import kinds
from loraloom.training.settings import AdapterSettings

if TYPE_CHECKING:
    from peft import PeftConfig

NAME = "trained"
"""peft's name of our adapter."""

ATTENTION = r"(attentions|text_model\.encoder\.layers)\.\d+(\.|$)"
"""What is trained of networks without named blocks, unless `targets` says otherwise: everything within a
UNet's attention blocks and CLIP's layers."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One network with its adapter. modules: diffusers' path → the peft layer there. left_out: layers that
    were to be trained and cannot have such an adapter."""

    network: nn.Module
    modules: Mapping[str, nn.Module]
    settings: AdapterSettings
    scales: Mapping[str, tuple[int, float]] = field(default_factory=lambda: dict[str, tuple[int, float]]())
    """Path → (rank, alpha)."""
    left_out: tuple[str, ...] = ()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by "path.name", in a stable order."""
        found: dict[str, nn.Parameter] = {}
        for path, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    found[f"{path}.{name}"] = parameter
        return found


def find_targets(
    network: nn.Module, settings: AdapterSettings, blocks: Iterable[str] = ()
) -> dict[str, tuple[int, float]]:
    """Path of every layer to train → its (rank, alpha). InputError where the expression finds none.

    blocks: the network's lists of blocks, which are trained unless `targets` says otherwise."""
    lists = "|".join(map(re.escape, blocks))
    try:
        pattern = re.compile(settings.targets or (rf"^({lists})\.\d+\." if lists else ATTENTION))
    except re.error as error:
        raise InputError(f"adapter.targets is no regular expression: {error}") from error
    conv_rank = kinds()[settings.kind].conv_rank(settings)
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


def inject(network: nn.Module, settings: AdapterSettings, seed: int, blocks: Iterable[str] = ()) -> Adapter:
    """Put a fresh adapter into a frozen network (see `find_targets`): it changes nothing until trained.

    The base stays as it is; only the adapter's parameters require gradients, all float32. Raises
    InputError where no layer can have one."""
    import_module(
        "torch.distributed.tensor"
    )  # peft asks for its class, and leaves the import to transformers
    found, kind = find_targets(network, settings, blocks), kinds()[settings.kind]
    weights = ((path, cast(Tensor, network.get_submodule(path).weight)) for path in found)
    left_out = tuple(path for path, weight in weights if not kind.can_train(weight))
    targets = {path: scale for path, scale in found.items() if path not in left_out}
    if not targets:
        raise InputError(
            f"adapter.kind {settings.kind!r} can train none of the {len(found)} layers that are chosen; "
            "choose another kind, or others by adapter.targets"
        )
    torch.manual_seed(seed)
    library_class("peft:inject_adapter_in_model")(_config(targets, settings), network, adapter_name=NAME)
    modules = {path: network.get_submodule(path) for path in targets}
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return Adapter(network, modules, settings, targets, left_out)


def _config(targets: Mapping[str, tuple[int, float]], settings: AdapterSettings) -> PeftConfig:
    given: dict[str, Any] = {
        "r": settings.rank,
        "target_modules": list(targets),
        "rank_pattern": {re.escape(path): rank for path, (rank, _) in targets.items()},
        "alpha_pattern": {re.escape(path): alpha for path, (_, alpha) in targets.items()},
    }
    return kinds()[settings.kind].config(given, settings.alpha or settings.rank, settings)


def copied(parameter: Tensor) -> Tensor:
    """A float32 copy on the CPU."""
    return parameter.detach().float().cpu().clone()


def written(
    adapter: Adapter, dialect: Dialect, take: Callable[[Tensor], Tensor] = copied
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Per module: its path, and its tensors by ending in a dialect, made of what `take` makes of the
    parameters."""
    kind = kinds()[adapter.settings.kind]
    algebra = registry().algebras[kind.algebra]
    found = Found(algebra, (), wrapper=registry().wrappers[kind.wrapper] if kind.wrapper else None)
    for path, module in adapter.modules.items():
        trained = {name: take(value) for name, value in _own(module)}
        tensors, (rank, alpha) = kind.tensors(trained), adapter.scales[path]
        gamma = alpha / rank
        if algebra.rank({role: tuple(tensor.shape) for role, tensor in tensors.items()}) is None:
            tensors |= algebra.times(tensors, gamma)  # readers apply no scale
        else:
            tensors["alpha"] = torch.tensor(float(alpha))
        yield path, by_ending(found, tensors, gamma, _dimensions(module), dialect)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A peft layer's parameters without the adapter's name: "lora_A", "hada_w1_a" …"""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name.split(".")[0], parameter


def _dimensions(module: nn.Module) -> int:
    """Of the weight of the layer in a peft layer."""
    base: nn.Module = module.get_base_layer()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    return base.weight.dim()  # pyright: ignore[reportCallIssue, reportReturnType]


def trainable_norm(parameters: Mapping[str, nn.Parameter]) -> float:
    """The norm of all trainable parameters together, for the log and the header."""
    return math.sqrt(sum(float(p.detach().square().sum()) for p in parameters.values()))
