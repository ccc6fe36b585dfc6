"""LoraLoader and LoraLoaderModelOnly."""

from __future__ import annotations

from loraloom.engine.node import NodeRun, node
from loraloom.lora.load import LoadedLora
from loraloom.lora.receipt import Receipt
from loraloom.models.handles import TextEncoders
from loraloom.models.text.embeddings import BundledEmbeddings
from loraloom.nodes.sockets import Clip, LoraFile, Model, Strength
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
        report(Receipt.unopened(str(path), "both strengths are 0").at(0.0, 0.0), lora_name, run)
        return model, clip
    loaded = found.loras.load(path, model, clip)
    report(loaded.receipt.at(strength_model, strength_clip), lora_name, run)
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
        report(Receipt.unopened(str(path), "its strength is 0").at(0.0, None), lora_name, run)
        return model
    loaded = found.loras.load(path, model, None)
    report(loaded.receipt.at(strength_model, None), lora_name, run)
    return model.with_lora(PatchUse(loaded.model, strength_model)) if loaded.model.patches() else model


def with_bundled_words(clip: TextEncoders, loaded: LoadedLora, name: str, run: NodeRun) -> TextEncoders:
    """Text encoders that know the words whose vectors a LoRA file holds beside its modules."""
    if not loaded.embeddings:
        return clip
    words: list[JSON] = [*sorted(loaded.embeddings)]
    run.note("embeddings", {"lora": name, "words": words})
    return clip.with_embeddings(BundledEmbeddings(loaded.embeddings))


def report(receipt: Receipt, name: str, run: NodeRun, **more: JSON) -> None:
    """Tell the run what one application of a LoRA did."""
    run.note("lora", {"node": run.node_id, "name": name, **receipt.to_json(), **more})
    for warning in receipt.warnings:
        run.warn(f"{name}: {warning}")
