"""Full training state as one safetensors file: written whole or not at all, read back bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from loraloom.atomic_file import write_file


@dataclass(frozen=True, slots=True)
class Training:
    """What a resumed run needs: networks by name, their slow averages and the optimizer over all of them.

    Random numbers need no state: every step seeds its own generator with its number.
    """

    networks: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    optimizer: Optimizer

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by a stable name."""
        found: dict[str, Tensor] = {}
        for kind, modules in (("network", self.networks), ("average", self.averages)):
            for name, module in modules.items():
                for key, value in module.state_dict().items():
                    found[f"{kind}/{name}/{key}"] = value.contiguous()
        for index, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{index}/{key}"] = value.contiguous()
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put the values of `tensors` back where they came from."""
        for kind, modules in (("network", self.networks), ("average", self.averages)):
            for name, module in modules.items():
                prefix = f"{kind}/{name}/"
                module.load_state_dict(
                    {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                )
        for index, parameter in enumerate(self._parameters()):
            prefix = f"optimizer/{index}/"
            values = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            if values:
                self.optimizer.state[parameter] = {k: _laid_out(v, parameter) for k, v in values.items()}


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """The value where the parameter is and in its memory format: the fused optimizer walks both in the order
    of memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file, so that a reader never sees half of it."""
    write_file(path, save_tensors(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, copied into memory, and its metadata."""
    with safe_open(path, "pt") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118


def save(path: Path, training: Training, step: int) -> None:
    """Keep the state after `step` steps."""
    write_tensors(path, training.tensors(), {"step": str(step)})


def resume(path: Path, training: Training) -> int:
    """Restore the state in `path` and return its step; 0 when there is none yet."""
    if not path.exists():
        return 0
    tensors, metadata = read_tensors(path)
    training.restore(tensors)
    return int(metadata["step"])


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the exponential moving average of the weights."""
    slow, fast = list(average.parameters()), list(network.parameters())
    torch._foreach_lerp_(slow, fast, 1.0 - decay)  # pyright: ignore[reportPrivateUsage]
