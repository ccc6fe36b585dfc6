"""From a LoRA file and the components of a model: where each module goes, or why nowhere. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loraloom.lora.algebras import Found, incomplete, recognise
from loraloom.lora.alpha import Scale, config_for, peft_configs, scale_of, unused_alpha
from loraloom.lora.comfyui import SKIPPED, known_names
from loraloom.lora.component import Component, ComponentName, Shape, bias_of
from loraloom.lora.file import LoraFile, Module
from loraloom.lora.module_names import Name, Names, take_apart
from loraloom.lora.receipt import Ignored, Rejected
from loraloom.weights.patch import Target

NO_TEXT_ENCODER = "for the text encoders, which this loader does not change"
NO_NETWORK = "not for the text encoders, the only part that is changed here"
BUNDLED = "text-encoder vectors bundled with the LoRA (textual inversion); they change no weight"
BOOKKEEPING = "bookkeeping of the training"
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Beginnings of values of PEFT's `init_lora_weights` that change the base weights before the training."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One change of one native weight. keys: role → tensor name. shape: of the target's rows; what an
    enlarging LoRA makes of them where `enlarges`. config: PEFT's, where there is one."""

    component: ComponentName
    module: str
    target: Target
    shape: Shape
    found: Found
    keys: Mapping[str, str]
    scale: Scale
    enlarges: bool = False
    config: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of every tensor of a file. totals: modules that the file holds for each component."""

    pieces: tuple[Piece, ...]
    totals: Mapping[str, int]
    ignored: tuple[Ignored, ...]
    unplaced: tuple[str, ...]
    unknown: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    dialects: Mapping[str, int]
    warnings: tuple[str, ...]

    def modules(self, component: str) -> int:
        return len({piece.module for piece in self.pieces if piece.component == component})


def place(
    file: LoraFile, components: Mapping[ComponentName, Component], *, compat: str = "trainer"
) -> Placement:
    """Find the place of every module. components without "clip": a loader that changes the model only."""
    return _Placing(file, components, compat == "comfyui").placement()


class _Placing:
    """The run over the modules of one file, and what has been found so far."""

    def __init__(self, file: LoraFile, components: Mapping[ComponentName, Component], comfyui: bool) -> None:
        self.file = file
        self.names: dict[ComponentName, Names] = {
            name: Names(component) for name, component in components.items()
        }
        self.comfyui = comfyui
        self.known = {name: known_names(name, part) for name, part in components.items()} if comfyui else {}
        self.configs = peft_configs(file.config, file.metadata)
        self.scalars = file.scales()
        self.control = _is_control(file)
        self.pieces: list[Piece] = []
        self.totals: Counter[str] = Counter()
        self.dialects: Counter[str] = Counter()
        self.slips: Counter[str] = Counter()
        self.ignored: dict[str, list[str]] = {}
        self.unplaced: list[str] = []
        self.unknown: list[str] = []
        self.rejected: list[Rejected] = []
        self.taken: dict[tuple[Target, str], str] = {}

    def placement(self) -> Placement:
        for module in self.file.modules:
            self._module(module)
        self._leftovers()
        ignored = tuple(Ignored(reason, tuple(names)) for reason, names in self.ignored.items())
        return Placement(
            tuple(self.pieces), dict(self.totals), ignored, tuple(self.unplaced), tuple(self.unknown),
            tuple(self.rejected), dict(self.dialects), self._warnings(),
        )  # fmt: skip

    def _module(self, module: Module) -> None:
        name = take_apart(module.name)
        component, target = self._find(name)
        self.dialects[name.dialect] += 1
        self.slips[name.slip] += 1
        if component is not None:
            self.totals[component] += 1
            if component not in self.names:
                reason = NO_TEXT_ENCODER if component == "clip" else NO_NETWORK
                self.ignored.setdefault(reason, []).append(module.name)
                return
        elif "model" not in self.names:
            self.ignored.setdefault(NO_NETWORK, []).append(module.name)
            return
        if target is None or component is None:
            self.unplaced.append(module.name)
            return
        if self.comfyui and module.name not in self.known[component]:
            self.ignored.setdefault(SKIPPED, []).append(module.name)
            return
        shapes = self.file.shapes(module)
        found, unused = recognise(shapes)
        if not found:
            self.rejected.append(Rejected(module.name, target.weight, incomplete(unused)))
            return
        self.unknown += [module.tensors[role] for role in unused]
        offset = 0
        for one in found:
            if one.part is not None:
                offset = self._part(component, module, target, one, offset)
            else:
                self._piece(component, module, target, one)

    def _find(self, name: Name) -> tuple[ComponentName | None, Target | None]:
        """The component that a name is for, and its target there."""
        candidates: list[ComponentName] = list(self.names)
        if name.component is not None:
            candidates = [name.component]
        for component in candidates:
            if component in self.names and (target := self.names[component].target(name)) is not None:
                return component, target
        return name.component, None

    def _part(
        self, component: ComponentName, module: Module, target: Target, found: Found, offset: int
    ) -> int:
        """The n-th part of a fused layer: its rows follow those of the part before. Returns the next row."""
        rows = found.algebra.part_rows(found.pick(self.file.shapes(module)))
        first, end = target.rows or (0, self.names[component].component.shapes[target.weight][0])
        start = first + offset
        if start + rows > end:
            self.rejected.append(
                Rejected(module.name, target.weight, "its parts have more rows than the weight")
            )
        else:
            self._piece(component, module, replace(target, rows=(start, start + rows)), found)
        return offset + rows

    def _piece(self, component: ComponentName, module: Module, target: Target, found: Found) -> None:
        if self.comfyui and (not found.algebra.in_comfyui or found.part is not None):
            self.ignored.setdefault(SKIPPED, []).append(f"{module.name} ({found.algebra.name})")
            return
        keys = found.pick(module.tensors)
        shapes = {role: self.file.header.tensors[key].shape for role, key in keys.items()}
        known = self.names[component].component
        if found.on_bias:
            target = replace(target, weight=bias_of(target.weight))
        if target.weight not in known.shapes:
            self.rejected.append(Rejected(module.name, target.weight, "the base has no bias here"))
            return
        shape = found.algebra.enlarged(shapes, known.shape_of(target), control=self.control)
        problem = found.misfit(shapes, shape) or self._clash(target, found, module)
        if problem is not None:
            self.rejected.append(Rejected(module.name, target.weight, problem))
            return
        scalars = {role: self.scalars[key] for role, key in keys.items() if key in self.scalars}
        config = config_for(self.configs, module.name)
        scale = scale_of(found, shapes, scalars, config, self.comfyui)
        enlarges = shape != known.shape_of(target)
        said = config[0].values if config else {}
        self.pieces.append(Piece(component, module.name, target, shape, found, keys, scale, enlarges, said))

    def _clash(self, target: Target, found: Found, module: Module) -> str | None:
        """A second module of the same algebra on the same rows is one module spelled twice."""
        first = self.taken.setdefault((target, found.algebra.name), module.name)
        return (
            None
            if first == module.name
            else f"spelled twice: {first!r} is the same place; the first one counts"
        )

    def _leftovers(self) -> None:
        if self.file.bundled:
            self.ignored[BUNDLED] = list(self.file.bundled)
        for key in (*self.file.unknown, *self.file.repeated):
            if key.startswith(("_aux.", "lora_aux.")):
                self.ignored.setdefault(BOOKKEEPING, []).append(key)
            else:
                self.unknown.append(key)

    def _warnings(self) -> tuple[str, ...]:
        found: list[str] = []
        zero = sum(piece.scale.rule == "alpha 0 read as rank" for piece in self.pieces)
        if zero:
            found.append(
                f"alpha is 0 in {zero} modules; read as alpha = rank, which is what trainers mean by 0"
            )
        found += self._header_notes()
        found += [
            f"{count} module names have {slip}, a fault of the program that wrote them; read without it"
            for slip, count in self.slips.items()
            if slip
        ]
        if self.file.repeated:
            found.append(f"{len(self.file.repeated)} tensors are a second adapter in the same file, left out")
        starts = sorted({config.start for config in self.configs if config.start.startswith(CHANGES_BASE)})
        found += [
            f"trained with PEFT's init_lora_weights={start!r} for a base that this start had changed, not for"
            " the plain one; PEFT's path_initial_model_for_weight_conversion saves it for that"
            for start in starts
        ]
        return tuple(found)

    def _header_notes(self) -> list[str]:
        """What the header says of scales, where the tensors say nothing."""
        for piece in self.pieces:
            if piece.found.algebra.scaled and piece.scale.rule == "no alpha":
                shapes = {role: self.file.header.tensors[key].shape for role, key in piece.keys.items()}
                rank = piece.found.algebra.rank(shapes)
                note = unused_alpha(self.file.metadata, rank) if rank else None
                return [] if note is None else [note]
        return []


def _is_control(file: LoraFile) -> bool:
    """Whether a file is one of Black Forest Labs' control LoRAs, which widen Flux's input layer."""
    names = {module.name.removeprefix("diffusion_model.") for module in file.modules}
    return "img_in" in names and any(name.endswith("_norm.scale") for name in names)
