"""What LyCORIS and PEFT make of their own modules: tensors as they save them, and the change they mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Oracle:
    """One trained module. tensors: suffix without the leading dot → value. change: strength → ΔW."""

    weight: Tensor
    tensors: Mapping[str, Tensor]
    change: Callable[[float], Tensor]


def base_module(shape: Shape) -> nn.Linear | nn.Conv2d:
    generator = torch.Generator().manual_seed(math.prod(shape))
    module = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2])
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    return module


def _lycoris(kind: str, shape: Shape, **options: Any) -> Oracle:
    """A LyCORIS module with every parameter drawn at random."""
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    classes: dict[str, Any] = {
        "locon": LoConModule, "loha": LohaModule, "lokr": LokrModule, "glora": GLoRAModule,
        "oft": DiagOFTModule, "boft": ButterflyOFTModule, "ia3": IA3Module,
    }  # fmt: skip
    base = base_module(shape)
    options = {"rank": 4, "alpha": 2.0, "std": 0.1, **options}
    rank, alpha, std = options.pop("rank"), options.pop("alpha"), options.pop("std")
    module: Any = classes[kind]("module", base, 1.0, rank, alpha, **options)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if "dora_scale" in name:
            parameter.data = parameter.data * (1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * std
    tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}
    weight = base.weight.detach().clone()
    module.eval()

    @torch.no_grad()
    def change(strength: float) -> Tensor:
        if kind in ("loha", "lokr"):  # their merged weights count γ twice, what they train does not
            return strength * (_weight_in_use(module, base) - weight)
        if kind == "boft":
            return module.get_merged_weight(strength)[0] - weight
        return strength * (module.get_merged_weight(1)[0] - weight)

    return Oracle(weight, tensors, change)


def _weight_in_use(module: nn.Module, base: nn.Linear | nn.Conv2d) -> Tensor:
    """The weight that a module's forward pass amounts to: its answers to unit inputs."""
    columns = base.weight[0].numel()
    units = torch.eye(columns).view(columns, *base.weight.shape[1:])
    answers = module(units).flatten(1) - base.bias
    return answers.T.reshape(base.weight.shape)


def _rescaled(kind: str, shape: Shape) -> Oracle:
    """OFT with a rescaling of each row; its strength leads linearly from W to W'."""
    return _lycoris(kind, shape, rank=8, constraint=0.0, rescaled=True, std=0.05)


def _oftv2(shape: Shape) -> Oracle:
    """PEFT's OFT layer: rotates the inputs."""
    from peft.tuners.oft.config import OFTConfig
    from peft.tuners.oft.layer import Conv2d, Linear

    base = base_module(shape)
    kind: Any = Linear if isinstance(base, nn.Linear) else Conv2d
    config = OFTConfig(r=0, oft_block_size=8 if len(shape) == 2 else 9, use_cayley_neumann=True)
    layer: Any = _peft_layer(kind, base, config)
    generator = torch.Generator().manual_seed(5)
    stored: nn.Parameter = layer.oft_R["default"].weight
    stored.data = torch.randn(stored.shape, generator=generator) * 0.05
    weight = base.weight.detach().clone()
    layer.merge()
    merged = layer.get_base_layer().weight.detach().clone()
    return Oracle(
        weight, {"oft_R.weight": stored.detach().clone()}, lambda strength: strength * (merged - weight)
    )


def _boft_input(shape: Shape) -> Oracle:
    """PEFT's BOFT layer: rotates the inputs, in as many stages as they divide into, three at most.

    PEFT allows more than one stage with its CUDA extension only, which it needs for a block diagonal.
    """
    from peft import BOFTConfig
    from peft.tuners.boft import layer as boft

    def diagonal(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*stage) for stage in blocks])

    base = base_module(shape)
    kind: Any = boft.Linear if isinstance(base, nn.Linear) else boft.Conv2d
    columns = math.prod(shape[1:])
    stages = 1 if columns > 1024 else 3 if columns % 8 == 0 else 2
    blocks = columns // 48 if stages == 1 else 2 ** (stages - 1)
    config = BOFTConfig(boft_block_size=0, boft_block_num=blocks, boft_n_butterfly_factor=stages)
    with (
        patch.object(boft, "get_fbd_cuda", lambda: True),
        patch.object(boft.FastBlockDiag, "apply", diagonal),
    ):
        layer: Any = kind(base, "default", config=config)
        generator = torch.Generator().manual_seed(5)
        stored = {name: getattr(layer, name)["default"] for name in ("boft_R", "boft_s")}
        for value in stored.values():
            value.data += torch.randn(value.shape, generator=generator) * 0.05
        weight = base.weight.detach().clone()
        layer.merge()
    merged = layer.get_base_layer().weight.detach().clone()
    tensors = {name: value.detach().clone() for name, value in stored.items()}
    return Oracle(weight, tensors, lambda strength: strength * (merged - weight))


def _full(shape: Shape) -> Oracle:
    """A full difference is its own oracle."""
    difference = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    weight = base_module(shape).weight.detach()
    return Oracle(weight, {"diff": difference}, lambda strength: strength * difference)


def _peft_layer(kind: Any, base: nn.Module, config: Any) -> Any:
    """PEFT's constructors differ between versions: newest first."""
    try:
        return kind(base, "default", config=config, r=config.r)
    except TypeError:
        return kind(
            base, "default", r=config.r, oft_block_size=config.oft_block_size,
            use_cayley_neumann=config.use_cayley_neumann,
        )  # fmt: skip


ALGORITHMS: Mapping[str, Callable[[Shape], Oracle]] = {
    "lora": lambda shape: _lycoris("locon", shape),
    "tucker": lambda shape: _lycoris("locon", shape, use_tucker=True),
    "loha": lambda shape: _lycoris("loha", shape),
    "loha-tucker": lambda shape: _lycoris("loha", shape, use_tucker=True),
    "lokr-whole": lambda shape: _lycoris("lokr", shape, rank=100000),
    "lokr-low": lambda shape: _lycoris("lokr", shape, factor=8),
    "lokr-both-low": lambda shape: _lycoris("lokr", shape, rank=2, factor=8, decompose_both=True),
    "lokr-tucker": lambda shape: _lycoris("lokr", shape, factor=8, use_tucker=True),
    "dora-output": lambda shape: _lycoris("locon", shape, weight_decompose=True, wd_on_out=True),
    "dora-input": lambda shape: _lycoris("locon", shape, weight_decompose=True, wd_on_out=False),
    "dora-loha": lambda shape: _lycoris("loha", shape, weight_decompose=True, wd_on_out=True),
    "dora-lokr": lambda shape: _lycoris("lokr", shape, factor=8, weight_decompose=True, wd_on_out=False),
    "glora": lambda shape: _lycoris("glora", shape),
    "oft": lambda shape: _lycoris("oft", shape, rank=8, constraint=0.0, std=0.05),
    "coft": lambda shape: _lycoris("oft", shape, rank=8, constraint=1e-3, std=0.05),
    "oft-rescaled": lambda shape: _rescaled("oft", shape),
    "boft": lambda shape: _lycoris("boft", shape, rank=12, constraint=0.0, std=0.05),
    "coft-butterfly": lambda shape: _lycoris("boft", shape, rank=12, constraint=1e-3, std=0.05),
    "oftv2": _oftv2,
    "boft-peft": _boft_input,
    "ia3-output": lambda shape: _lycoris("ia3", shape),
    "ia3-input": lambda shape: _lycoris("ia3", shape, train_on_input=True),
    "full": _full,
}
"""Algorithm → a trained module for a weight of that shape."""


@cache
def trained(algorithm: str, shape: Shape) -> Oracle:
    found = ALGORITHMS[algorithm](shape)
    return Oracle(found.weight, found.tensors, cache(found.change))
