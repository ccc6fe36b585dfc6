"""Pictures as further tokens of a prompt: encoders of pictures, and the style models that read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.engine.node import Blocked, Choice, Files, NodeRun, Number, Socket, node
from loraloom.errors import InputError
from loraloom.models.checkpoint import (
    open_checkpoint_with_eyes,
    open_model_patch,
    open_picture_encoder,
    open_style_model,
)
from loraloom.models.parts.picture_vectors import PICTURES
from loraloom.models.picture_encoders import (
    DEPTHS,
    STYLES,
    PictureEncoder,
    PictureStates,
    StyleModel,
    StyleTokens,
    fitted,
    see,
    tokens_of,
)
from loraloom.models.residency.activations import sequence_numbers
from loraloom.nodes.loaders import parts_of
from loraloom.nodes.sockets import CheckpointFile, Clip, Conditioning, Image, Model, Vae
from loraloom.runtime.services import services
from loraloom.sampling.types import Cond
from loraloom.weights.capacity import clear_about_memory

Encoder = Annotated[PictureEncoder, Socket("CLIP_VISION")]
Seen = Annotated[PictureStates, Socket("CLIP_VISION_OUTPUT")]
Style = Annotated[StyleModel, Socket("STYLE_MODEL")]
Patch = Annotated[StyleModel, Socket("MODEL_PATCH")]
PATCHES = "comfy_extras.nodes_model_patch"


@node("CLIPVisionLoader", category="loaders", display_name="Load CLIP Vision")
def load_picture_encoder(clip_name: Annotated[str, Files("clip_vision")], *, run: NodeRun) -> Encoder:
    """Open an encoder of pictures: SigLIP, or CLIP's vision half."""
    return open_picture_encoder(services(run).folders.resolve("clip_vision", clip_name))


@node("CLIPVisionEncode", category="conditioning", display_name="CLIP Vision Encode")
def encode_pictures(
    clip_vision: Encoder, image: Image, crop: Annotated[str, Choice(("center", "none"))], *, run: NodeRun
) -> Seen:
    """What an encoder sees in pictures: in the square of their middle, or in the whole, squeezed into one."""
    memory = services(run).memory
    size = cast(int, clip_vision.kind.module.config(clip_vision.weights.shapes)["image_size"])
    pixels = fitted(clip_vision.kind, image.float(), size, crop == "center")

    def seen(module: nn.Module) -> list[PictureStates]:
        return [see(module, one.to(memory.device)) for one in pixels.split(1)]

    with torch.inference_mode(), clear_about_memory("encoding these pictures"):
        length = tokens_of(clip_vision)
        found = memory.with_pictures(clip_vision, lambda module: sequence_numbers(module, 1, length), seen)
    names = (field.name for field in fields(PictureStates))
    return PictureStates(*(torch.cat([one[name] for one in found]) for name in names))


@node("unCLIPCheckpointLoader", category="loaders")
def load_unclip_checkpoint(
    ckpt_name: CheckpointFile, *, run: NodeRun
) -> tuple[Model, Clip | Blocked, Vae | Blocked, Encoder | Blocked]:
    """Open a checkpoint that holds a picture encoder beside the rest."""
    path = services(run).folders.resolve("checkpoints", ckpt_name)
    model, clip, vae, eyes = open_checkpoint_with_eyes(path)
    return (
        model,
        *parts_of(ckpt_name, clip, vae),
        eyes or Blocked(f"{ckpt_name} holds no picture encoder: load it with CLIPVisionLoader"),
    )


@node("unCLIPConditioning", category="conditioning")
def tell_pictures(
    conditioning: Conditioning,
    clip_vision_output: Seen,
    strength: Annotated[float, Number(min=-10.0, max=10.0, step=0.01)] = 1.0,
    noise_augmentation: Annotated[float, Number(min=0.0, max=1.0, step=0.01)] = 0.0,
) -> Conditioning:
    """Tell a model what pictures are about: Stable unCLIP beside the prompt, SDXL in place of its pooled
    words (Revision). The noisier, the less closely it follows."""
    if strength == 0:
        return conditioning
    picture: Mapping[str, object] = {
        "clip_vision_output": clip_vision_output,
        "strength": strength,
        "noise_augmentation": noise_augmentation,
    }

    def told(cond: Cond) -> Cond:
        known = cast("Iterable[object]", cond.options.get(PICTURES) or ())
        return replace(cond, options={**cond.options, PICTURES: (*known, picture)})

    return tuple(map(told, conditioning))


@node("StyleModelLoader", category="loaders", display_name="Load Style Model")
def load_style_model(style_model_name: Annotated[str, Files("style_models")], *, run: NodeRun) -> Style:
    """Open a style model: Flux Redux."""
    return open_style_model(services(run).folders.resolve("style_models", style_model_name))


@node("StyleModelApply", category="conditioning/style_model", display_name="Apply Style Model")
def apply_style(
    conditioning: Conditioning,
    style_model: Style,
    clip_vision_output: Seen,
    *,
    strength: Annotated[float, Number(min=0.0, max=10.0, step=0.001)] = 1.0,
    strength_type: Annotated[str, Choice(("multiply", "attn_bias"))],
    run: NodeRun,
) -> Conditioning:
    """Put what a picture says behind the tokens of a prompt, made stronger or weaker (multiply), or looked at
    more or less (attn_bias)."""
    tokens = _tokens(style_model, clip_vision_output, run)
    is_bias = strength_type == "attn_bias"
    tokens = tokens if is_bias else tokens * strength
    return tuple(_followed(cond, tokens, strength if is_bias else 1.0) for cond in conditioning)


def _tokens(style: StyleModel, seen: PictureStates, run: NodeRun) -> Tensor:
    """(1, N, width) of all pictures, one behind the other."""
    memory, (reads, _) = services(run).memory, style.widths
    states = seen.last_hidden_state
    if states.shape[-1] != reads:
        raise InputError(
            f"the picture encoder's states are {states.shape[-1]} wide and the style model reads {reads}: "
            "Flux Redux goes with SigLIP so400m (sigclip_vision_patch14_384)"
        )

    def made(module: nn.Module) -> Tensor:
        return module(states.to(memory.device)).image_embeds.float().cpu()

    with torch.inference_mode(), clear_about_memory("reading this style"):
        found = memory.with_pictures(style, lambda module: sequence_numbers(module, *states.shape[:2]), made)
    return found.flatten(0, 1)[None].clone()


def _followed(cond: Cond, tokens: Tensor, strength: float) -> Cond:
    """With further tokens, to which prompt and picture attend by so many times more. How much they attend to
    what, "attention_mask" holds as ComfyUI has it: (1, T + 1, T + 1) logarithms, the last row and column for
    all tokens of the picture."""
    if cond.context.shape[-1] != tokens.shape[-1]:
        raise InputError(
            f"the prompt's tokens are {cond.context.shape[-1]} wide and the style model's "
            f"{tokens.shape[-1]}: Flux Redux goes with Flux.1"
        )
    context = torch.cat([cond.context, tokens.to(cond.context)], dim=1)
    known = cond.options.get("attention_mask")
    if strength == 1.0 and known is None:
        return replace(cond, context=context)
    before, more = cond.context.shape[1], tokens.shape[1]
    bias = known if isinstance(known, Tensor) else torch.zeros(1, before + 1, before + 1)
    bias = F.pad(bias[:, :before, :before], (0, more + 1, 0, more + 1))
    if isinstance(known, Tensor):
        bias[:, :before, -1], bias[:, -1, :before] = known[:, :before, -1], known[:, -1, :before]
        bias[:, -1, -1] = known[:, -1, -1]
    others = [*range(before), before + more]
    bias[:, others, before : before + more] = torch.tensor(strength).log()
    options = {**cond.options, "attention_mask": bias, "attention_mask_img_shape": (1, 1)}
    return replace(cond, context=context, options=options)


@node(
    "ModelPatchLoader",
    category="advanced/loaders",
    experimental=True,
    outputs=("MODEL_PATCH",),
    python_module=PATCHES,
)
def load_model_patch(name: Annotated[str, Files("model_patches")], *, run: NodeRun) -> Patch:
    """Open what changes a model beside its weights: USO's style projector."""
    return open_model_patch(services(run).folders.resolve("model_patches", name))


@node(
    "USOStyleReference",
    category="advanced/model_patches/flux",
    experimental=True,
    python_module=PATCHES,
)
def attach_style(model: Model, model_patch: Patch, clip_vision_output: Seen, *, run: NodeRun) -> Model:
    """Let Flux.1 see the style of a picture, as USO was trained to."""
    if not model.family.takes_styles:
        raise InputError(f"USOStyleReference is for Flux.1; {model.family.title} has no place for its tokens")
    told = model_patch.kind.module.config(model_patch.weights.shapes)
    states = clip_vision_output.all_hidden_states
    if states.shape[1] < -min(DEPTHS) or tuple(states.shape[2:]) != (told["seen"], told["reads"]):
        raise InputError(
            f"the picture encoder has {states.shape[1]} layers of {states.shape[2]} tokens, "
            f"{states.shape[3]} wide; the style projector reads {told['seen']} tokens, {told['reads']} wide, "
            "of 20 or more: it goes with SigLIP so400m (sigclip_vision_patch14_384)"
        )
    memory = services(run).memory

    def made(module: nn.Module) -> Tensor:
        return module(*(states[:, depth].to(memory.device) for depth in DEPTHS)).float().cpu()

    rows, length = len(states), len(DEPTHS) * states.shape[2]
    with torch.inference_mode(), clear_about_memory("reading this style"):
        tokens = memory.with_pictures(
            model_patch, lambda module: sequence_numbers(module, rows, length), made
        ).clone()
    before = cast("tuple[StyleTokens, ...]", model.option(STYLES, ()))
    return model.with_option(STYLES, (*before, StyleTokens(tokens)))
