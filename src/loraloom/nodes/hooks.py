"""Nodes for LoRAs of single conditionings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

from loraloom.engine.node import NodeRun, Number, Socket, node
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.difference import ModelDifference
from loraloom.models.handles import TextEncoders
from loraloom.nodes.lora import report_use, with_bundled_words
from loraloom.nodes.sockets import CheckpointFile, Clip, LoraFile
from loraloom.runtime.services import services
from loraloom.sampling.hooks import Hooks, LoraHook
from loraloom.sampling.types import Cond
from loraloom.sampling.types import Conditioning as ConditioningValue
from loraloom.weights.patch import PatchUse
from loraloom.weights.source import WeightSource

EXTRA = "comfy_extras.nodes_hooks"
CREATE = "advanced/hooks/create"
COMBINE = "advanced/hooks/combine"

HooksSocket = Annotated[Hooks, Socket("HOOKS")]
HookStrength = Annotated[float, Number(min=-20.0, max=20.0, step=0.01)]
Percent = Annotated[float, Number(min=0.0, max=1.0, step=0.001)]

# ---- making hooks ---------------------------------------------------------------------------------------


@node(
    "CreateHookLora", category=CREATE, display_name="Create Hook LoRA", experimental=True, python_module=EXTRA
)
def create_lora(
    *,
    lora_name: LoraFile,
    strength_model: HookStrength = 1.0,
    strength_clip: HookStrength = 1.0,
    prev_hooks: HooksSocket | None = None,
    run: NodeRun,
) -> HooksSocket:
    """A LoRA for single conditionings instead of the whole model."""
    if strength_model == 0 and strength_clip == 0:
        return prev_hooks or ()
    path = services(run).folders.resolve("loras", lora_name)
    return (*(prev_hooks or ()), LoraHook(str(path), strength_model, strength_clip, name=lora_name))


@node(
    "CreateHookLoraModelOnly",
    category=CREATE,
    display_name="Create Hook LoRA (MO)",
    experimental=True,
    python_module=EXTRA,
)
def create_lora_model_only(
    *,
    lora_name: LoraFile,
    strength_model: HookStrength = 1.0,
    prev_hooks: HooksSocket | None = None,
    run: NodeRun,
) -> HooksSocket:
    """A LoRA for single conditionings that leaves the text encoders as they are."""
    return create_lora(
        lora_name=lora_name, strength_model=strength_model, strength_clip=0.0, prev_hooks=prev_hooks, run=run
    )


@node(
    "CreateHookModelAsLora",
    category=CREATE,
    display_name="Create Hook Model as LoRA",
    experimental=True,
    python_module=EXTRA,
)
def create_model(
    *,
    ckpt_name: CheckpointFile,
    strength_model: HookStrength = 1.0,
    strength_clip: HookStrength = 1.0,
    prev_hooks: HooksSocket | None = None,
    run: NodeRun,
) -> HooksSocket:
    """What tells a checkpoint from the model in use, for single conditionings."""
    path = services(run).folders.resolve("checkpoints", ckpt_name)
    made = LoraHook(str(path), strength_model, strength_clip, is_model=True, name=ckpt_name)
    return (*(prev_hooks or ()), made)


@node(
    "CreateHookModelAsLoraModelOnly",
    category=CREATE,
    display_name="Create Hook Model as LoRA (MO)",
    experimental=True,
    python_module=EXTRA,
)
def create_model_only(
    *,
    ckpt_name: CheckpointFile,
    strength_model: HookStrength = 1.0,
    prev_hooks: HooksSocket | None = None,
    run: NodeRun,
) -> HooksSocket:
    """What tells a checkpoint's diffusion network from the one in use, for single conditionings."""
    return create_model(
        ckpt_name=ckpt_name, strength_model=strength_model, strength_clip=0.0, prev_hooks=prev_hooks, run=run
    )


@node(
    "CombineHooks2",
    category=COMBINE,
    display_name="Combine Hooks [2]",
    experimental=True,
    python_module=EXTRA,
)
def combine_2(hooks_A: HooksSocket | None = None, hooks_B: HooksSocket | None = None) -> HooksSocket:
    """Use the hooks of both."""
    return _joined(hooks_A, hooks_B)


@node(
    "CombineHooks4",
    category=COMBINE,
    display_name="Combine Hooks [4]",
    experimental=True,
    python_module=EXTRA,
)
def combine_4(
    *,
    hooks_A: HooksSocket | None = None,
    hooks_B: HooksSocket | None = None,
    hooks_C: HooksSocket | None = None,
    hooks_D: HooksSocket | None = None,
) -> HooksSocket:
    """Use the hooks of all four."""
    return _joined(hooks_A, hooks_B, hooks_C, hooks_D)


@node(
    "CombineHooks8",
    category=COMBINE,
    display_name="Combine Hooks [8]",
    experimental=True,
    python_module=EXTRA,
)
def combine_8(
    *,
    hooks_A: HooksSocket | None = None,
    hooks_B: HooksSocket | None = None,
    hooks_C: HooksSocket | None = None,
    hooks_D: HooksSocket | None = None,
    hooks_E: HooksSocket | None = None,
    hooks_F: HooksSocket | None = None,
    hooks_G: HooksSocket | None = None,
    hooks_H: HooksSocket | None = None,
) -> HooksSocket:
    """Use the hooks of all eight."""
    return _joined(hooks_A, hooks_B, hooks_C, hooks_D, hooks_E, hooks_F, hooks_G, hooks_H)


def _joined(*hooks: Hooks | None) -> Hooks:
    """All hooks in order, each once."""
    return tuple(dict.fromkeys(hook for group in hooks if group for hook in group))


# ---- giving hooks to prompts ----------------------------------------------------------------------------


def hooks_of(cond: Cond) -> Hooks:
    return cast("Hooks", cond.options.get("hooks", ()))


def with_hooks(conditioning: ConditioningValue, hooks: Hooks) -> ConditioningValue:
    """Every entry with further LoRAs of its own."""
    return tuple(
        replace(cond, options={**cond.options, "hooks": _joined(hooks_of(cond), hooks)})
        for cond in conditioning
    )


@node(
    "SetClipHooks",
    category="advanced/hooks/clip",
    display_name="Set CLIP Hooks",
    experimental=True,
    python_module=EXTRA,
)
def set_clip_hooks(
    *,
    clip: Clip,
    apply_to_conds: bool = True,
    schedule_clip: bool = False,
    hooks: HooksSocket | None = None,
    run: NodeRun,
) -> Clip:
    """Encode prompts with the hooks' LoRAs, and give the hooks to what they are encoded to."""
    encoded: list[LoraHook] = []
    for hook in hooks or ():
        before = clip
        if hook.strength_clip != 0:
            clip = (_with_model if hook.is_model else _with_lora)(clip, hook, run)
        encoded.append(replace(hook, encoded=clip != before))
    if schedule_clip and any(hook.keyframes for hook in hooks or ()):
        run.warn(
            "text encoders keep one strength: schedule_clip is not followed, the hooks' strength_clip is"
        )
    return clip.with_option("cond_hooks", tuple(encoded)) if apply_to_conds and hooks else clip


def _with_lora(clip: TextEncoders, hook: LoraHook, run: NodeRun) -> TextEncoders:
    loaded = services(run).loras.load_text(Path(hook.path), clip, lambda m: run.warn(f"{hook.label}: {m}"))
    if loaded is None:
        return clip
    report_use(loaded, None, hook.strength_clip, hook.label, run)
    clip = with_bundled_words(clip, loaded.lora, hook.label, run)
    return clip.with_lora(PatchUse(loaded.lora.clip, hook.strength_clip))


def _with_model(clip: TextEncoders, hook: LoraHook, run: NodeRun) -> TextEncoders:
    _, other, _ = open_checkpoint(Path(hook.path))
    if other is None:
        run.warn(f"{hook.label} holds no text encoders; those in use stay as they are")
        return clip
    base, changed = (WeightSource.joined(part.weights for part in c.parts) for c in (clip, other))
    difference = ModelDifference(base, changed)
    return clip.with_lora(PatchUse(difference, hook.strength_clip)) if difference.patches() else clip
