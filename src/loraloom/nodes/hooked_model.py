"""What hooks do to a model while it is being sampled: the networks they make, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loraloom.engine.node import NodeRun
from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.difference import ModelDifference
from loraloom.models.handles import DiffusionModel
from loraloom.nodes.hooks import hooks_of
from loraloom.nodes.lora import report_use
from loraloom.runtime.lora_shelf import Shelved, named_parts
from loraloom.runtime.services import services
from loraloom.sampling.guidance import Guidance, SamplingOptions
from loraloom.sampling.hooks import Change, LoraHook
from loraloom.sampling.types import Conditioning, Network
from loraloom.weights.patch import PatchSource, PatchUse, Stack
from loraloom.workflow.graph import JSON


def hooked_network(model: DiffusionModel, run: NodeRun, changes: tuple[Change, ...]) -> Network:
    """The network with LoRAs of single conditionings beside its weights."""
    return services(run).memory.network(model, tuple(_stack(change, model, run) for change in changes))


def _stack(change: Change, model: DiffusionModel, run: NodeRun) -> Stack:
    sources = ((_source(hook, model, run), strength) for hook, strength in change)
    return tuple(PatchUse(source, strength) for source, strength in sources if source is not None)


def _source(hook: LoraHook, model: DiffusionModel, run: NodeRun) -> PatchSource | None:
    if hook.is_model:
        other, _, _ = open_checkpoint(Path(hook.path))
        return ModelDifference(model.weights, other.weights)
    loaded = _loaded(hook, model, run)
    return None if loaded is None else loaded.lora.model


def _loaded(hook: LoraHook, model: DiffusionModel, run: NodeRun) -> Shelved | None:
    """A hook's LoRA for the network; None: it changed text encoders, and has no more to change."""
    path = Path(hook.path)
    try:
        return services(run).loras.load(path, model, None)
    except InputError:
        if hook.encoded and named_parts(path) == {"clip"}:
            return None
        raise


def report_hooks(
    model: DiffusionModel, guidance: Guidance, options: SamplingOptions | None, run: NodeRun
) -> None:
    """Give a receipt for every LoRA that conditionings bring along, with their names and its schedule.

    Raises InputError for a LoRA of which nothing was applied, neither here nor to the text encoders."""
    sides = {name: conditioning for name, (conditioning, _) in guidance.sides().items()}
    if options is not None:
        sides |= {name: extra.conditioning for name, extra in options.extra}
    found: dict[LoraHook, list[JSON]] = {}
    for name, conditioning in sides.items():
        for hook in dict.fromkeys(_hooks(conditioning)):
            found.setdefault(hook, []).append(name)
    for hook, names in found.items():
        if not hook.is_model and hook.strength_model != 0:
            _report(hook, names, model, run)


def _hooks(conditioning: Conditioning) -> Iterable[LoraHook]:
    return (hook for cond in conditioning for hook in hooks_of(cond))


def _report(hook: LoraHook, names: list[JSON], model: DiffusionModel, run: NodeRun) -> None:
    loaded = _loaded(hook, model, run)
    if loaded is None:
        return
    said: dict[str, JSON] = {"conditionings": names}
    if hook.keyframes:
        said["schedule"] = [
            {"start_percent": frame.start_percent, "strength": hook.strength_model * frame.strength}
            for frame in hook.keyframes
        ]
    report_use(loaded, hook.strength_model, None, hook.label, run, **said)
