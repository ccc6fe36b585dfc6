"""Load a LoRA for the parts of a model: patches for its weights, and the receipt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.lora.algebra import Change, Ingredients
from loraloom.lora.algebras import algebra_title
from loraloom.lora.comfyui import SKIPPED
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.effect import effect_of
from loraloom.lora.file import LoraFile
from loraloom.lora.hashes import Hashes
from loraloom.lora.origin import base_of, dialect_of, in_words, made_for, title_of, trainer_of
from loraloom.lora.place import Piece, Placement, place
from loraloom.lora.receipt import ComponentReceipt, Effect, Receipt, Rejected, Survival, shorten
from loraloom.lora.sidecars import read_sidecars
from loraloom.lora.survival import survival_of
from loraloom.lora.triggers import triggers_of
from loraloom.lora.unsupported import count_unsupported, say_unsupported
from loraloom.weights.patch import Factors, PatchSet, Rows
from loraloom.weights.tensor_file import TensorFile

Compat = Literal["trainer", "comfyui"]

ANY_ENCODER = ".string_to_param.*"
"""How bundled vectors end that name no encoder."""

AnyPatch: TypeAlias = "ModulePatch | SwappedPatch"
Found: TypeAlias = "dict[str, list[AnyPatch]]"


@dataclass(frozen=True, slots=True, eq=False)
class ModulePatch:
    """One module's change of one native weight (a `weights.patch.Patch`)."""

    signature: Hashable
    rows: Rows
    change: Change

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return self.change.apply(weight, strength)

    def norm(self, weight: Callable[[], Tensor]) -> float:
        """‖ΔW‖ at strength 1."""
        return self.change.norm(weight)

    def factors(self) -> Factors | None:
        return self.change.factors()


@dataclass(frozen=True, slots=True, eq=False)
class SwappedPatch:
    """A patch written for the same rows with their halves exchanged (see `Target.swapped`)."""

    signature: Hashable
    rows: Rows
    change: Change

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        return _swap(self.change.apply(_swap(weight), strength))

    def norm(self, weight: Callable[[], Tensor]) -> float:
        return self.change.norm(lambda: _swap(weight()))

    def factors(self) -> Factors | None:
        found = self.change.factors()
        return None if found is None else Factors(found.down, _swap(found.up))


def _swap(tensor: Tensor) -> Tensor:
    """The two halves of the rows exchanged, in fresh memory."""
    return tensor.roll(tensor.shape[0] // 2, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One component's patches of a loaded LoRA (a `weights.patch.PatchSource`)."""

    digest: str
    by_weight: Mapping[str, tuple[AnyPatch, ...]]

    def patches(self) -> PatchSet:
        return self.by_weight


@dataclass(frozen=True, slots=True, eq=False)
class LoadedLora:
    """A LoRA ready for use. model, clip: its patches by component, empty where it has none.

    receipt: where its modules went; `measured` knows more. embeddings: bundled textual-inversion vectors,
    token → encoder key → tensor.
    """

    file: LoraFile
    components: Mapping[ComponentName, Component]
    model: Source
    clip: Source
    receipt: Receipt
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(
        default_factory=lambda: dict[str, Mapping[str, Tensor]]()
    )

    def measured(self, hashes: Hashes) -> Receipt:
        """The receipt with the names of the file's content, and with the size of the change where the base's
        weights can be read, which takes a moment. For any thread."""
        effects: list[Effect] = []
        survival: list[Survival] = []
        for name, part in self.components.items():
            patches = (self.model if name == "model" else self.clip).by_weight
            if part.read is not None and patches:
                effects.append(effect_of(name, patches, part.read, part.quantised))
                if part.quantised and (found := survival_of(name, patches, part.quantised)) is not None:
                    survival.append(found)
        return replace(
            self.receipt,
            digest=self.file.digest(hashes.blake3),
            hashes=hashes.named(),
            effects=tuple(effects),
            survival=tuple(survival),
        )


def load_lora(
    file: LoraFile,
    components: Mapping[ComponentName, Component],
    *,
    compat: Compat = "trainer",
    strict: bool = False,
) -> LoadedLora:
    """Patches and receipt of a LoRA file for these components ("model", and "clip" if it is to be changed).

    InputError where nothing finds a place, with what the file is for; under `strict` also where anything
    does not. Otherwise what is left out stands in the receipt, with a warning.
    """
    placement = place(file, components, compat=compat)
    tensors = TensorFile(file.path)
    patches: dict[ComponentName, Found] = {"model": {}, "clip": {}}
    digest = f"{file.state}/{compat}"
    rejected = list(placement.rejected)
    placed: list[Piece] = []
    idle = 0
    for piece in placement.pieces:
        given = _ingredients(piece, tensors, comfyui=compat == "comfyui")
        if (bad := _not_finite(given)) is not None:
            rejected.append(Rejected(piece.module, piece.target.weight, bad))
            continue
        try:
            change = piece.found.change(given)
        except ModelFileError as error:  # what only the values can tell
            rejected.append(Rejected(piece.module, piece.target.weight, str(error)))
            continue
        idle += piece.found.algebra.is_zero(given.tensors)
        signature = (digest, piece.target, piece.module, piece.found.algebra.name)
        kind = SwappedPatch if piece.target.swapped else ModulePatch
        patches[piece.component].setdefault(piece.target.weight, []).append(
            kind(signature, piece.target.rows, change)
        )
        placed.append(piece)
    receipt = _receipt(file, placement, placed, rejected, components, compat)
    _refuse(file, receipt, components, strict=strict)
    if idle == len(placed):
        receipt = _with_warning(receipt, "all its changes are zero: it was never trained, or it was emptied")
    sources = {name: Source(f"{digest}/{name}", _frozen(found)) for name, found in patches.items()}
    return LoadedLora(
        file, components, sources["model"], sources["clip"], receipt, _embeddings(file, tensors)
    )


def _frozen(found: Found) -> Mapping[str, tuple[AnyPatch, ...]]:
    return MappingProxyType({weight: tuple(patches) for weight, patches in found.items()})


def _ingredients(piece: Piece, tensors: TensorFile, *, comfyui: bool) -> Ingredients:
    parts = {role: tensors.read(key) for role, key in piece.keys.items()}
    return Ingredients(parts, piece.shape, piece.scale.gamma, comfyui, piece.config)


def _not_finite(given: Ingredients) -> str | None:
    for role, tensor in given.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(torch.float32)).all()):
            return f"its {role} tensor holds NaN or infinity: the training diverged or the file is damaged"
    if given.gamma != given.gamma or given.gamma in (float("inf"), float("-inf")):
        return "its alpha is not a number"
    return None


def _embeddings(file: LoraFile, tensors: TensorFile) -> dict[str, dict[str, Tensor]]:
    """bundle_emb.<token>.<encoder key> → vectors; a token may itself hold dots; "*": any encoder."""
    found: dict[str, dict[str, Tensor]] = {}
    for key in file.bundled:
        name = key.split(".", 1)[1]
        word = name.removesuffix(ANY_ENCODER)
        token, _, encoder = (word, "", "*") if word != name else name.rpartition(".")
        if token:
            found.setdefault(token, {})[encoder] = tensors.read(key)
    return found


def _receipt(
    file: LoraFile, placement: Placement, placed: list[Piece], rejected: list[Rejected],
    components: Mapping[ComponentName, Component], compat: Compat,
) -> Receipt:  # fmt: skip
    kinds = Counter(algebra_title(piece.found.label) for piece in placed)
    parts = tuple(_component_receipts(placement, placed, components))
    receipt = Receipt(
        file=str(file.path), digest="", dialect=dialect_of(file), trainer=trainer_of(file),
        base=title_of(base_of(file)), algorithms=dict(kinds), alpha=_alpha(placed), components=parts,
        ignored=placement.ignored, unplaced=placement.unplaced, unknown=placement.unknown,
        unsupported=count_unsupported(file.unsupported),
        rejected=tuple(rejected), triggers=triggers_of(file.metadata, read_sidecars(file.path)).words,
        warnings=placement.warnings, compat=compat,
    )  # fmt: skip
    if receipt.complete:
        return receipt
    return _with_warning(receipt, _other_family(file, receipt, components) + _incomplete(receipt))


def _other_family(file: LoraFile, receipt: Receipt, components: Mapping[ComponentName, Component]) -> str:
    """The cause, where a part of a LoRA for another family fits by chance."""
    family = next((part.family for part in components.values()), None)
    base = base_of(file)
    if base in (None, "text", family) or receipt.matched == receipt.total:
        return ""
    return f"this is a {title_of(base)} LoRA and the model is {title_of(family)}: "


def _component_receipts(
    placement: Placement, placed: list[Piece], components: Mapping[ComponentName, Component]
) -> Iterator[ComponentReceipt]:
    for name in components:
        here = [piece for piece in placed if piece.component == name]
        modules = len({piece.module for piece in here})
        yield ComponentReceipt(
            name, modules, placement.totals.get(name, 0), len({piece.target.weight for piece in here})
        )


def _with_warning(receipt: Receipt, warning: str) -> Receipt:
    return replace(receipt, warnings=(*receipt.warnings, warning))


def _alpha(placed: list[Piece]) -> str:
    """How the scales were found, in one line: "alpha tensors (γ = 0.5)"."""
    rules: dict[str, set[float]] = {}
    for piece in placed:
        if piece.found.algebra.scaled:
            rules.setdefault(piece.scale.rule, set()).add(piece.scale.gamma)
    said: list[str] = []
    for rule, values in rules.items():
        low, high = min(values), max(values)
        said.append(f"{rule} (γ = {low:g})" if low == high else f"{rule} (γ = {low:g} … {high:g})")
    return "; ".join(said) or "none needed"


def _incomplete(receipt: Receipt) -> str:
    parts: list[str] = []
    if receipt.unplaced:
        parts.append(
            f"{len(receipt.unplaced)} modules have no place in this model ({shorten(receipt.unplaced, 3)})"
        )
    if receipt.rejected:
        first = receipt.rejected[0]
        parts.append(f"{len(receipt.rejected)} do not fit ({first.module}: {first.reason})")
    if receipt.unsupported:
        parts.append(say_unsupported(receipt.unsupported))
    if strange := len(receipt.unknown) - sum(receipt.unsupported.values()):
        parts.append(f"{strange} tensors are of no known kind ({shorten(receipt.unknown, 3)})")
    applied = f"only {receipt.matched} of {receipt.total} modules were applied: "
    return (applied if receipt.matched < receipt.total else "a part was left out: ") + "; ".join(parts)


def _refuse(
    file: LoraFile, receipt: Receipt, components: Mapping[ComponentName, Component], *, strict: bool
) -> None:
    if receipt.matched == 0:
        raise InputError(_nothing(file, receipt, components))
    if strict and not receipt.complete:
        raise InputError(f"{file.path}: {receipt.warnings[-1]}")


def _nothing(file: LoraFile, receipt: Receipt, components: Mapping[ComponentName, Component]) -> str:
    """What to say where nothing was placed: what the file is for, and what it met."""
    met = title_of(next((part.family for part in components.values()), None))
    base = base_of(file)
    trained_on = file.metadata.get("ss_sd_model_name") or file.metadata.get("modelspec.architecture")
    named = f" (trained on {trained_on})" if trained_on and trained_on != "None" else ""
    start = f"{file.path}: nothing of this LoRA could be applied"
    if receipt.rejected and not receipt.unplaced:
        first = receipt.rejected[0]
        own, theirs = made_for(file, base), in_words(components["model"]) if "model" in components else met
        if own != theirs and title_of(base) == met:
            return f"{start}: it was made for {own}, this is {theirs} ({first.module}: {first.reason})"
        return f"{start}: all {len(receipt.rejected)} modules are unusable ({first.module}: {first.reason})"
    if "clip" not in components and any(one.reason.startswith("for the text") for one in receipt.ignored):
        return (
            f"{start}: it changes text encoders only, and this loader changes the model only;"
            " use LoraLoader with both MODEL and CLIP"
        )
    if base is not None and title_of(base) != met and base != "text":
        return f"{start}: this is a {title_of(base)} LoRA{named}, the checkpoint is {met}"
    skipped = [name for one in receipt.ignored if one.reason == SKIPPED for name in one.modules]
    if skipped and not receipt.unplaced:
        return (
            f"{start}: it is for {met}, but ComfyUI v0.3.64 loads none of its {len(skipped)} modules"
            f" ({shorten(skipped, 3)}) and would go on without it; leave --compat comfyui away to apply them"
        )
    if receipt.unsupported and not receipt.unplaced:
        return f"{start}: {say_unsupported(receipt.unsupported)}"
    if receipt.unplaced:
        shown = shorten(receipt.unplaced, 3)
        return f"{start}: none of its {len(receipt.unplaced)} modules is in {met} ({shown})"
    return f"{start}: it holds no complete LoRA module; {met} was expected"
