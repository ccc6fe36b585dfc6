"""Everything that a run needs, made from its settings: examples, latents, conditionings, adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from loraloom.errors import InputError
from loraloom.lora.receipt import shorten
from loraloom.models.family import Family
from loraloom.models.residency.memory import Memory
from loraloom.training.adapters import Adapter, inject
from loraloom.training.buckets import Plan, Size, bucket_of, bucket_sizes
from loraloom.training.conditioning import CachedText, Conditioner, LearningText
from loraloom.training.dataset import Example, Split, read_examples, remarks, split
from loraloom.training.export import training_facts
from loraloom.training.latents import LatentCache
from loraloom.training.model import Handles, LiveNetwork, fingerprint, load_network, load_text, open_model
from loraloom.training.settings import Settings
from loraloom.training.start import open_start, start_from


@dataclass(frozen=True, slots=True)
class Session:
    """What the loop works on. sizes: the bucket of each training and validation example, by digest. remarks:
    on the data, and on layers that are left out."""

    settings: Settings
    handles: Handles
    live: LiveNetwork
    split: Split
    sizes: dict[str, Size]
    latents: LatentCache
    condition: Conditioner
    adapters: dict[str, Adapter]
    plan: Plan
    remarks: tuple[str, ...]

    @property
    def family(self) -> Family:
        return self.handles.model.family

    def network_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the diffusion network, "model.path.name"."""
        return _named("model", self.adapters["model"])

    def text_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the text encoders, "clip_l.path.name"."""
        found: dict[str, nn.Parameter] = {}
        for role, adapter in self.adapters.items():
            if role != "model":
                found |= _named(role, adapter)
        return found


def _named(component: str, adapter: Adapter) -> dict[str, nn.Parameter]:
    return {f"{component}.{name}": parameter for name, parameter in adapter.parameters().items()}


def open_session(settings: Settings) -> Session:
    """Read the data, encode what is not cached, load the network and put the adapters in."""
    handles = open_model(settings.model)
    family = handles.model.family
    if settings.adapter.text_encoder and not training_facts(family).text:
        raise InputError(
            f"the text encoders of {family.title} are not trained: set adapter.text_encoder to false"
        )
    start = None if settings.adapter.start is None else open_start(settings.adapter.start)
    examples = read_examples(settings.data)
    found = split(examples, settings.validation.share)
    everything = (*found.training, *found.validation)
    sizes = _buckets(everything, settings)
    cache = settings.cache or settings.output / "cache"
    memory = Memory(settings.run.device, "fp32")
    latents = LatentCache(
        memory.autoencoder(handles.autoencoder), cache / "latents", fingerprint(handles.autoencoder.weights)
    )
    latents.fill(everything, [sizes[e.digest] for e in everything])
    memory.release()
    adapters: dict[str, Adapter] = {}
    condition = _conditioner(handles, settings, everything, adapters, cache / "text")
    live = load_network(handles.model, settings.run)
    blocks = family.blocks.values()
    adapters = {"model": inject(live.module, settings.adapter, settings.run.seed, blocks), **adapters}
    if start is not None:
        start_from(start, adapters, family)
    plan = Plan.of(
        found.training, [sizes[e.digest] for e in found.training], settings.run.batch, settings.run.seed
    )
    return Session(
        settings,
        handles,
        live,
        found,
        sizes,
        latents,
        condition,
        adapters,
        plan,
        (*remarks(examples), *_left_out(adapters, settings.adapter.kind)),
    )


def _left_out(adapters: Mapping[str, Adapter], kind: str) -> Iterator[str]:
    for part, adapter in adapters.items():
        if adapter.left_out:
            yield (
                f"{len(adapter.left_out)} layers of {part} stay as they are, as a {kind} cannot train them "
                f"(rows of their weights are all zeros): {shorten([*adapter.left_out])}"
            )


def _buckets(examples: tuple[Example, ...], settings: Settings) -> dict[str, Size]:
    offered = bucket_sizes(settings.run.resolution, settings.run.bucket_step)
    return {example.digest: bucket_of(example.size, offered) for example in examples}


def _conditioner(
    handles: Handles,
    settings: Settings,
    examples: tuple[Example, ...],
    adapters: dict[str, Adapter],
    cache: Path,
) -> Conditioner:
    """Frozen encoders: everything that will surely be asked is encoded now. Trained ones get adapters."""
    roles = tuple(part.role for part in handles.text.parts)
    live = load_text(handles.text, settings.run, roles)
    if settings.adapter.text_encoder:
        for number, role in enumerate(training_facts(handles.model.family).text):
            adapters[role] = inject(live.modules[role], settings.adapter, settings.run.seed + 1 + number)
        return LearningText(live, handles.text)
    key = fingerprint(*(part.weights for part in handles.text.parts))
    condition = CachedText(live, handles.text, cache, key)
    samples = settings.samples
    for caption in {"", samples.negative, *samples.prompts, *(example.caption for example in examples)}:
        condition(caption)
    return condition
