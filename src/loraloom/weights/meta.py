"""Modules whose parameters take no memory until they are filled.

Parameters are made on the device "meta". What a constructor computes (tables of rotary frequencies, position
numbers) is real from the start: such buffers are in no file, so nothing would ever fill them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loraloom.errors import ModelFileError

_UNFILLED = frozenset({torch.empty, torch.empty_strided, torch.empty_like})
"""What makes memory without values: layers make their parameters so, and initialise them afterwards."""

_INITIALISATIONS = frozenset(
    {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}
    | {value for name, value in vars(nn.init).items() if name.endswith("_") and callable(value)}
)
"""What gives new parameters values: nothing to do on "meta", where doing it imports TorchDynamo and SymPy."""


class _UnfilledOnMeta(TorchFunctionMode):
    """Memory without values is made on "meta"; whatever has values stays where it is made."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _INITIALISATIONS:
            new = cast(Tensor, given["tensor"] if "tensor" in given else args[0])
            if new.is_meta:
                return new
        if func in _UNFILLED:
            given["device"] = "meta"
        return func(*args, **given)


def build_unfilled(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, its parameters on "meta" and what it computes real, on the CPU."""
    with torch.device("cpu"), _UnfilledOnMeta():
        return build()


def complete(module: nn.Module, device: torch.device, later: Sequence[Tensor] = ()) -> None:
    """Bring what the file did not fill to the device. ModelFileError names what has no values at all.

    later: tensors that get theirs when they are used."""
    known = {id(tensor) for tensor in later}
    left = [name for name, tensor in _tensors(module) if tensor.is_meta and id(tensor) not in known]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise ModelFileError(f"nothing gives values to {', '.join(left[:8])}{more} of the network")
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.device != device:
                setattr(owner, name, buffer.to(device))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters, buffers and tensors in plain attributes (also in lists of them), by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()
    for path, owner in module.named_modules():
        for name, value in vars(owner).items():
            values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else (value,)
            for item in values:
                if isinstance(item, Tensor):
                    yield f"{path}.{name}".lstrip("."), item
