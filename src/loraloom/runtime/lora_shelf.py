"""Loaded LoRAs, kept while they are in use so that switching back costs no reading.

What a receipt says beyond the places of a LoRA's modules (its hashes, for which the whole file is read, and
the size of its change) is measured in a thread, at the lowest priority that the system has, while the picture
is drawn: the file was just read, so it is in memory and the disk has nothing to do with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraloom.background import Background
from loraloom.errors import InputError, ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import HashIndex
from loraloom.lora.load import Compat, LoadedLora, load_lora
from loraloom.lora.module_names import take_apart
from loraloom.lora.receipt import Receipt
from loraloom.weights.source import WeightSource

if TYPE_CHECKING:
    from loraloom.models.handles import DiffusionModel, TextEncoders

KEPT = 16


@dataclass(frozen=True, slots=True)
class Shelved:
    """receipt: the LoRA's, once it is measured."""

    lora: LoadedLora
    receipt: Future[Receipt]


class LoraShelf:
    """LoRA files loaded for particular models, the latest `KEPT` of them.

    compat, strict: see `lora.load.load_lora`. A file that was overwritten is loaded again.
    """

    def __init__(self, compat: Compat = "trainer", strict: bool = False) -> None:
        self._compat: Compat = compat
        self._strict = strict
        self._loaded: OrderedDict[Hashable, Shelved] = OrderedDict()
        self._hashes = HashIndex()
        self._measuring = Background("loraloom-receipts")

    def load(self, path: Path, model: DiffusionModel, clip: TextEncoders | None) -> Shelved:
        """The LoRA of a file, placed on the weights of a model and, where given, of its text encoders."""
        text = None if clip is None else (clip.kind, tuple(part.weights for part in clip.parts))
        key = (FileIdentity.of(path), model.family.name, model.weights, text)
        if key not in self._loaded:
            parts = () if clip is None else clip.parts
            bases = (model.weights, *(part.weights for part in parts))
            self._keep(key, path, _components(model, clip), bases)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def load_text(self, path: Path, clip: TextEncoders, warn: Callable[[str], None]) -> Shelved | None:
        """What the LoRA of a file changes in text encoders alone; None when it changes nothing there.

        warn: told why, where the file is partly for text encoders (of another kind, say)."""
        key = (FileIdentity.of(path), clip.kind, tuple(part.weights for part in clip.parts))
        if key not in self._loaded:
            try:
                bases = [part.weights for part in clip.parts]
                self._keep(key, path, {"clip": _text_component(clip, clip.kind)}, bases)
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
        self,
        key: Hashable,
        path: Path,
        components: dict[ComponentName, Component],
        bases: Sequence[WeightSource],
    ) -> None:
        lora = load_lora(read_lora(path), components, compat=self._compat, strict=self._strict)
        self._loaded[key] = Shelved(lora, self._measuring.submit(self._measured, lora, bases))
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)

    def _measured(self, lora: LoadedLora, bases: Sequence[WeightSource]) -> Receipt:
        """In the thread. The picture does not depend on it: what cannot be read any more is a warning."""
        try:
            hashes = self._hashes.hashes(lora.file.path)
            self._hashes.save()
            if FileIdentity.of(lora.file.path).content != lora.file.identity.content:
                raise ModelFileError(f"{lora.file.path}: another file has taken its place")
            with torch.inference_mode():
                return lora.measured(hashes)
        except (ModelFileError, OSError) as error:
            warning = f"its hashes and the size of its change are not known: {error}"
            return replace(lora.receipt, warnings=(*lora.receipt.warnings, warning))
        finally:
            for file in dict.fromkeys(file for base in bases for file in base.files):
                file.unmap()  # the pages that were looked at count as this process's memory

    def close(self) -> None:
        """Begin to measure nothing more."""
        self._measuring.close()


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
