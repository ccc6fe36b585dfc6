"""Loaded LoRAs, kept while they are in use so that switching back costs no reading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.errors import InputError, ModelFileError
from loraloom.folders import FileIdentity
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import HashIndex
from loraloom.lora.load import Compat, LoadedLora, load_lora
from loraloom.lora.module_names import take_apart
from loraloom.weights.source import WeightSource

if TYPE_CHECKING:
    from loraloom.models.handles import DiffusionModel, TextEncoders

KEPT = 16


class LoraShelf:
    """LoRA files loaded for particular models, the latest `KEPT` of them.

    compat, strict: see `lora.load.load_lora`. A file that was overwritten is loaded again.
    """

    def __init__(self, compat: Compat = "trainer", strict: bool = False) -> None:
        self._compat: Compat = compat
        self._strict = strict
        self._loaded: OrderedDict[Hashable, LoadedLora] = OrderedDict()
        self._hashes = HashIndex()

    def load(self, path: Path, model: DiffusionModel, clip: TextEncoders | None) -> LoadedLora:
        """The LoRA of a file, placed on the weights of a model and, where given, of its text encoders."""
        text = None if clip is None else (clip.kind, tuple(part.weights for part in clip.parts))
        key = (FileIdentity.of(path), model.family.name, model.weights, text)
        if key not in self._loaded:
            self._keep(key, path, _components(model, clip), strict=self._strict)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def load_text(self, path: Path, clip: TextEncoders, warn: Callable[[str], None]) -> LoadedLora | None:
        """What the LoRA of a file changes in text encoders alone; None when it changes nothing there.

        warn: told why, where the file is partly for text encoders (of another kind, say)."""
        key = (FileIdentity.of(path), clip.kind, tuple(part.weights for part in clip.parts))
        if key not in self._loaded:
            try:
                self._keep(key, path, {"clip": _text_component(clip, clip.kind)}, strict=self._strict)
            except ModelFileError:
                raise
            except InputError as error:
                if "clip" in named_parts(path):
                    if self._strict:
                        raise
                    warn(str(error))
                return None
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _keep(
        self, key: Hashable, path: Path, components: dict[ComponentName, Component], *, strict: bool
    ) -> None:
        file = read_lora(path)
        hashes = self._hashes.hashes(file.path)
        self._hashes.save()
        self._loaded[key] = load_lora(file, components, compat=self._compat, strict=strict, hashes=hashes)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)


def named_parts(path: Path) -> set[ComponentName]:
    """The parts of a model that a LoRA file's names speak of; names that speak of none are the network's."""
    return {take_apart(module.name).component or "model" for module in read_lora(path).modules}


def _components(model: DiffusionModel, clip: TextEncoders | None) -> dict[ComponentName, Component]:
    family = model.family.name
    components: dict[ComponentName, Component] = {
        "model": Component(
            family, model.weights.shapes, model.lora_aliases(), model.weights.map, model.weights.quantised
        )
    }
    if clip is not None:
        components["clip"] = _text_component(clip, family)
    return components


def _text_component(clip: TextEncoders, family: str) -> Component:
    text = WeightSource.joined(part.weights for part in clip.parts)
    return Component(family, text.shapes, clip.lora_aliases(), text.map, text.quantised)
