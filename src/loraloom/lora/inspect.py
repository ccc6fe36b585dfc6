"""A LoRA file on one page: what it is, what it is for, how it was made, and how it fits a base. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from loraloom.lora.algebras import algebra_title, recognise
from loraloom.lora.alpha import config_for, peft_configs, scale_of, unused_alpha
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import LoraFile
from loraloom.lora.hashes import Hashes, embedded_hash_note
from loraloom.lora.metadata import facts
from loraloom.lora.module_names import take_apart
from loraloom.lora.origin import base_of, dialect_of, in_words, made_for, said_base, title_of, trainer_of
from loraloom.lora.place import NO_TEXT_ENCODER, Placement, place
from loraloom.lora.receipt import shorten
from loraloom.lora.sidecars import read_sidecars
from loraloom.lora.triggers import frequent_tags, triggers_of
from loraloom.lora.unsupported import count_unsupported, say_unsupported


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the header, the sidecars and, where given, a base's header say of a LoRA.

    not_finite: tensor → how many of its values are NaN or infinite, where that was looked for.
    parts: component → modules. algorithms: algebra ("DoRA on LoRA") → modules. ranks: rank → modules.
    alpha: rule (γ) → modules. dtypes: "fp32", "bf16" … → tensors, but for single numbers. fit: of the base,
    if given.
    """

    file: str
    size: int
    base: str
    title: str
    dialect: str
    trainer: str
    parts: Mapping[str, int]
    algorithms: Mapping[str, int]
    ranks: Mapping[str, int]
    alpha: Mapping[str, int]
    dtypes: Mapping[str, int]
    tensors: int
    unknown: tuple[str, ...]
    unsupported: Mapping[str, int]
    facts: Mapping[str, str]
    triggers: tuple[str, ...]
    trigger_source: str
    tags: tuple[tuple[str, int], ...]
    description: str
    previews: tuple[str, ...]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    not_finite: Mapping[str, int]
    fit: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def page_of(
    file: LoraFile,
    base: Mapping[ComponentName, Component] | None = None,
    hashes: Hashes | None = None,
    compat: str = "trainer",
    broken: Mapping[str, int] | None = None,
) -> Page:
    """Inspect a file; `base` adds where its modules would go, `hashes` what the content is called, `broken`
    which values are no numbers (`not_finite`)."""
    parts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    alphas: Counter[str] = Counter()
    scalars = file.scales()
    configs = peft_configs(file.config, file.metadata)
    for module in file.modules:
        shapes = file.shapes(module)
        parts[take_apart(module.name).component or "model"] += 1
        values = {role: scalars[key] for role, key in module.tensors.items() if key in scalars}
        found, _ = recognise(shapes)
        for one in found:
            kinds[algebra_title(one.label)] += 1
            used = one.pick(shapes)
            rank = one.algebra.rank(used)
            if rank is not None:
                ranks[rank] += 1
            if one.algebra.scaled:
                scale = scale_of(one, used, values, config_for(configs, module.name), compat == "comfyui")
                alphas[f"{scale.rule} (γ = {scale.gamma:g})"] += 1
        if not found:
            kinds["incomplete"] += 1
    sidecars = read_sidecars(file.path)
    triggers = triggers_of(file.metadata, sidecars)
    family = base_of(file)
    return Page(
        file=str(file.path), size=file.header.file_size, base=family or "unknown",
        title=made_for(file, family),
        dialect=dialect_of(file), trainer=trainer_of(file), parts=dict(parts), algorithms=dict(kinds),
        ranks={str(rank): count for rank, count in sorted(ranks.items())}, alpha=dict(alphas),
        dtypes=_types(file),
        tensors=len(file.header.tensors), unknown=(*file.unknown, *file.repeated),
        unsupported=count_unsupported(file.unsupported), facts=facts(file.metadata),
        triggers=triggers.words, trigger_source=triggers.source,
        tags=tuple(frequent_tags(file.metadata)[:12]),
        description=sidecars.description, previews=tuple(str(path) for path in sidecars.previews),
        hashes=hashes.named() if hashes else {},
        notes=(*_notes(file, family, hashes), *_scale_notes(file, ranks, alphas)),
        not_finite=broken or {},
        fit=None if base is None else fit_of(place(file, base, compat=compat), base),
    )  # fmt: skip


def _types(file: LoraFile) -> dict[str, int]:
    """Types as `--dtype` spells them: "fp32" of "F32", "bf16" of "BF16"."""
    tensors = file.header.tensors.values()
    names = [info.dtype for info in tensors if prod(info.shape) > 1] or [info.dtype for info in tensors]
    return dict(Counter(re.sub(r"^F(?=\d)", "fp", name).lower() for name in names))


def _notes(file: LoraFile, family: str | None, hashes: Hashes | None) -> list[str]:
    notes: list[str] = []
    said = said_base(file.metadata)
    if said is not None and family not in (said, None, "text"):
        notes.append(f"its metadata says {title_of(said)}, its tensors are those of {title_of(family)}")
    if hashes is not None and (note := embedded_hash_note(file.metadata, hashes)) is not None:
        notes.append(note)
    if file.unsupported:
        notes.append(say_unsupported(count_unsupported(file.unsupported)))
    if file.bundled:
        notes.append(f"{len(file.bundled)} bundled text-encoder vectors (textual inversion)")
    return notes


def _scale_notes(file: LoraFile, ranks: Mapping[int, int], alphas: Mapping[str, int]) -> list[str]:
    if not ranks or not any(rule.startswith("no alpha") for rule in alphas):
        return []
    note = unused_alpha(file.metadata, max(ranks))
    return [] if note is None else [note]


def fit_of(placement: Placement, base: Mapping[ComponentName, Component]) -> dict[str, Any]:
    """How a placement went, as plain data."""
    return {
        "base": in_words(next(iter(base.values()))),
        "components": {
            name: {"matched": placement.modules(name), "total": placement.totals.get(name, 0)}
            for name in base
        },
        "unplaced": list(placement.unplaced),
        "rejected": [asdict(one) for one in placement.rejected],
        "ignored": {
            one.reason if one.reason != NO_TEXT_ENCODER else "this base file holds no text encoders":
            len(one.modules) for one in placement.ignored
        },
        "warnings": list(placement.warnings),
    }  # fmt: skip


def fit_lines(fit: Mapping[str, Any], title: str) -> list[str]:
    """How a LoRA for `title` fits a base, the verdict first: "Stable Diffusion 1.5: model 192/192, …"."""
    counts = {name: one for name, one in fit["components"].items() if one["total"] or one["matched"]}
    if not any(one["matched"] for one in counts.values()):
        other = f", which is for {title}," if title != fit["base"] else ""
        lines = [f"{fit['base']}: nothing of this LoRA{other} has a place here"]
    else:
        said = ", ".join(f"{name} {one['matched']}/{one['total']}" for name, one in counts.items())
        lines = [f"{fit['base']}: {said} modules placed"]
    if fit["unplaced"]:
        lines.append(f"{len(fit['unplaced'])} without a place: {shorten(fit['unplaced'], 3)}")
    lines += [f"does not fit: {one['module']}, {one['reason']}" for one in fit["rejected"][:3]]
    if len(fit["rejected"]) > 3:
        lines.append(f"and {len(fit['rejected']) - 3} more that do not fit")
    lines += [f"{count} left out: {reason}" for reason, count in fit["ignored"].items()]
    return lines + list(fit["warnings"])
