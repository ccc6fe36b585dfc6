"""The full state of a run between two steps: written whole, read back bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from loraloom.atomic_file import remove
from loraloom.errors import InputError
from loraloom.training.optimizers import optimizer_tensors, restore_optimizer
from loraloom.training.settings import RunSettings, SampleSettings, Settings
from loraloom.training.storage import read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class Position:
    """step: steps done. losses: of each of them. validations: (step, loss) so far; best: the lowest."""

    step: int = 0
    losses: tuple[float, ...] = ()
    validations: tuple[tuple[int, float], ...] = ()

    @property
    def best(self) -> float:
        return min((loss for _, loss in self.validations), default=float("inf"))


def settings_digest(settings: Settings) -> str:
    """What identifies a run."""
    return _digest(what_counts(settings))


def what_counts(settings: Settings) -> str:
    """All settings that change a run's result, as JSON. How often it saves or draws samples does not."""
    run = replace(settings.run, save_every=1, keep_states=1, device=RunSettings().device)
    same = asdict(replace(settings, run=run, samples=SampleSettings(), output=Path(), metadata={}))
    del same["cache"]
    return json.dumps(same, default=str, sort_keys=True)


def _digest(stated: str) -> str:
    return hashlib.sha256(stated.encode()).hexdigest()


def state_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def save_state(
    folder: Path,
    position: Position,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    stated: str,
    keep: int,
) -> None:
    """Write the state after `position.step` steps; the oldest beyond `keep` are deleted. stated:
    `what_counts` of the run's settings."""
    tensors = {f"parameter/{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(optimizer).items()}
    tensors["losses"] = torch.tensor(position.losses, dtype=torch.float64)
    header = {
        "step": str(position.step),
        "settings": _digest(stated),
        "stated": stated,
        "validations": json.dumps(position.validations),
    }
    write_tensors(state_path(folder, position.step), tensors, header)
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        remove(old)


def last_state(folder: Path) -> Path | None:
    """The newest state of a run, if there is one."""
    return max(folder.glob("step-*.safetensors"), default=None)


def restore_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, stated: str
) -> Position:
    """Put a saved state back. InputError where it belongs to a run with other settings."""
    with safe_open(path, "pt") as handle:
        header = cast("dict[str, str]", handle.metadata() or {})
    if header.get("settings") != _digest(stated):
        raise InputError(
            f"{path.parent} holds the state of a run with other settings{_others(header, stated)}: restore "
            "them, name another output, or delete that folder to begin anew"
        )
    tensors = read_tensors(path)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter/{name}"])
    restore_optimizer(optimizer, _under("optimizer/", tensors))
    validations = cast("list[tuple[int, float]]", json.loads(header["validations"]))
    return Position(
        int(header["step"]),
        tuple(tensors["losses"].tolist()),
        tuple((int(step), float(loss)) for step, loss in validations),
    )


def _others(header: Mapping[str, str], stated: str) -> str:
    """(run.steps was 100), of the settings that a state was written under."""
    before, now = (dict(_flat(json.loads(text))) for text in (header.get("stated", "{}"), stated))
    names = sorted(name for name in before if before[name] != now.get(name))
    said = ", ".join(f"{name} was {json.dumps(before[name])}" for name in names)
    return f" ({said})" if said else ""


def _flat(value: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(cast("dict[str, object]", inner), f"{above}{name}.")
        else:
            yield above + name, inner


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
