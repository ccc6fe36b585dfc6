"""LoraLoader and LoraLoaderModelOnly."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.engine.node import NodeRun, node
from loraloom.lora.load import LoadedLora
from loraloom.lora.receipt import Receipt
from loraloom.models.handles import TextEncoders
from loraloom.models.text.embeddings import BundledEmbeddings
from loraloom.nodes.sockets import Clip, LoraFile, Model, Strength
from loraloom.runtime.lora_shelf import Shelved
from loraloom.runtime.services import services
from loraloom.weights.patch import PatchUse
from loraloom.workflow.graph import JSON


@node("LoraLoader", category="loaders", display_name="Load LoRA")
def load_lora(
    model: Model,
    clip: Clip,
    lora_name: LoraFile,
    strength_model: Strength = 1.0,
    strength_clip: Strength = 1.0,
    *,
    run: NodeRun,
) -> tuple[Model, Clip]:
    """Apply a LoRA to a diffusion model and to its text encoders, each with its own strength."""
    found = services(run)
    path = found.folders.resolve("loras", lora_name)
    if strength_model == 0 and strength_clip == 0:
        unopened = Receipt.unopened(str(path), "both strengths are 0").at(0.0, 0.0)
        run.note("lora", _said(unopened, lora_name, run, {}))
        return model, clip
    shelved = found.loras.load(path, model, clip)
    loaded = shelved.lora
    report_use(shelved, strength_model, strength_clip, lora_name, run)
    if strength_model != 0 and loaded.model.patches():
        model = model.with_lora(PatchUse(loaded.model, strength_model))
    if strength_clip != 0 and loaded.clip.patches():
        clip = clip.with_lora(PatchUse(loaded.clip, strength_clip))
    return model, with_bundled_words(clip, loaded, lora_name, run)


@node("LoraLoaderModelOnly", category="loaders", display_name="LoraLoaderModelOnly")
def load_lora_model_only(
    model: Model, lora_name: LoraFile, strength_model: Strength = 1.0, *, run: NodeRun
) -> Model:
    """Apply a LoRA to a diffusion model alone: for families whose text encoders LoRAs leave as they are."""
    found = services(run)
    path = found.folders.resolve("loras", lora_name)
    if strength_model == 0:
        unopened = Receipt.unopened(str(path), "its strength is 0").at(0.0, None)
        run.note("lora", _said(unopened, lora_name, run, {}))
        return model
    shelved = found.loras.load(path, model, None)
    loaded = shelved.lora
    report_use(shelved, strength_model, None, lora_name, run)
    return model.with_lora(PatchUse(loaded.model, strength_model)) if loaded.model.patches() else model


def with_bundled_words(clip: TextEncoders, loaded: LoadedLora, name: str, run: NodeRun) -> TextEncoders:
    """Text encoders that know the words whose vectors a LoRA file holds beside its modules."""
    if not loaded.embeddings:
        return clip
    words: list[JSON] = [*sorted(loaded.embeddings)]
    run.note("embeddings", {"lora": name, "words": words})
    return clip.with_embeddings(BundledEmbeddings(loaded.embeddings))


def report_use(
    shelved: Shelved, model: float | None, clip: float | None, name: str, run: NodeRun, **more: JSON
) -> None:
    """Tell the run what one application of a LoRA at these strengths did."""
    run.note_later("lora", shelved.receipt, lambda receipt: _said(receipt.at(model, clip), name, run, more))
    for warning in shelved.lora.receipt.warnings:
        run.warn(f"{name}: {warning}")


def _said(receipt: Receipt, name: str, run: NodeRun, more: Mapping[str, JSON]) -> JSON:
    return {"node": run.node_id, "name": name, **receipt.to_json(), **more}
