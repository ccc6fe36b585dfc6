"""Encoders of pictures alone (SigLIP, CLIP's vision half), and what makes their states tokens of a prompt.

As data, without torch; `see` calls one. ComfyUI calls the first CLIP_VISION and the second STYLE_MODEL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, Any

from loraloom.errors import ModelFileError
from loraloom.models.encoder import NamedTensor, named_shape
from loraloom.models.known_model import Blueprint, Config, KnownModel, Module, count_blocks
from loraloom.models.names import Names, Shapes
from loraloom.models.parts.encoder_layouts import as_named, open_clip_vision
from loraloom.models.recognition import looks_like, native_shapes
from loraloom.weights.header import Header

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.weights.source import WeightSource

EMBEDDINGS = "vision_model.embeddings."
LAYER = "vision_model.encoder.layers.{}."
HEADS = {768: 12, 1024: 16, 1152: 16, 1280: 16, 1664: 16}
"""Width → heads in published files, which no shape says; 64 wide in others."""

EPSILON = 1e-5
"""Of norms, as ComfyUI has it for all (SigLIP was trained with 1e-6)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureEncoderKind(KnownModel):
    """mean, deviation: of the pixels per channel."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PictureEncoder:
    """A handle as those of `models.handles`."""

    kind: PictureEncoderKind
    weights: WeightSource

    @property
    def blueprint(self) -> Blueprint:
        return self.weights.worked_out(self.kind.blueprint)


@dataclass(frozen=True, slots=True)
class StyleModel:
    """What turns a picture encoder's states (B, N, D) into tokens of a prompt (B, N, width)."""

    kind: KnownModel
    weights: WeightSource

    @property
    def blueprint(self) -> Blueprint:
        return self.weights.worked_out(self.kind.blueprint)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the states that it reads and the tokens that it makes."""
        return self.weights.shapes["redux_up.weight"][1], self.weights.shapes["redux_down.weight"][0]


@dataclass(frozen=True, slots=True)
class PictureStates:
    """What an encoder makes of pictures, under ComfyUI's names: last_hidden_state (B, N, D),
    penultimate_hidden_states (B, N, D), what goes into its last layer; image_embeds (B, P), or SigLIP's
    (B, N, D); all_hidden_states (B, layers, N, D), what comes out of each layer."""

    last_hidden_state: Tensor
    penultimate_hidden_states: Tensor
    image_embeds: Tensor
    all_hidden_states: Tensor

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = getattr(self, name)
        return found


def _config(shapes: Shapes, without: int, **others: object) -> Config:
    """without: positions that are not of patches."""
    width, channels, patch, _ = shapes[EMBEDDINGS + "patch_embedding.weight"]
    side = isqrt(shapes[EMBEDDINGS + "position_embedding.weight"][0] - without)
    return {
        "hidden_size": width,
        "intermediate_size": shapes[LAYER.format(0) + "mlp.fc1.weight"][0],
        "num_hidden_layers": count_blocks(shapes, LAYER + "mlp.fc1.weight"),
        "num_attention_heads": HEADS.get(width, max(width // 64, 1)),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "layer_norm_eps": EPSILON,
        **others,
    }


def siglip_config(shapes: Shapes) -> Config:
    return _config(shapes, 0, hidden_act="gelu_pytorch_tanh", vision_use_head=False)


def clip_config(shapes: Shapes) -> Config:
    projection, width = shapes["visual_projection.weight"]
    act = "quick_gelu" if width == 1024 else "gelu"  # OpenAI's of ViT-L; OpenCLIP's are exact
    return _config(shapes, 1, hidden_act=act, projection_dim=projection)


TRANSFORMERS = "transformers.models."
UNUSED = ("*.position_ids", "logit_scale", "text_model.*", "text_projection.*", "vision_model.head.*")

KINDS = (
    PictureEncoderKind(
        name="siglip",
        title="SigLIP vision",
        marks=(EMBEDDINGS + "patch_embedding.bias", EMBEDDINGS + "position_embedding.weight"),
        unmarks=(EMBEDDINGS + "class_embedding",),
        fits=lambda shapes: len(shapes[EMBEDDINGS + "patch_embedding.weight"]) == 4,
        module=Module(
            TRANSFORMERS + "siglip.modeling_siglip:SiglipVisionModel",
            siglip_config,
            configuration=TRANSFORMERS + "siglip.configuration_siglip:SiglipVisionConfig",
        ),
        names=Names(
            {
                **{f"vision_model.{part}.{{*}}": f"{part}.{{*}}" for part in ("embeddings", "encoder")},
                "vision_model.post_layernorm": "post_layernorm",
            },
            unused=UNUSED,
        ),
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
    ),
    PictureEncoderKind(
        name="clip_vision",
        title="CLIP vision",
        marks=(EMBEDDINGS + "class_embedding", "visual_projection.weight"),
        module=Module(
            TRANSFORMERS + "clip.modeling_clip:CLIPVisionModelWithProjection",
            clip_config,
            configuration=TRANSFORMERS + "clip.configuration_clip:CLIPVisionConfig",
        ),
        names=Names(
            {"vision_model.{*}": "vision_model.{*}", "visual_projection": "visual_projection"}, unused=UNUSED
        ),
        mean=(0.48145466, 0.4578275, 0.40821073),
        deviation=(0.26862954, 0.26130258, 0.27577711),
    ),
)

REDUX = KnownModel(
    name="redux",
    title="Flux Redux",
    marks=("redux_up.weight", "redux_down.weight"),
    module=Module(
        "diffusers.pipelines.flux.modeling_flux:ReduxImageEncoder",
        lambda shapes: {
            "redux_dim": shapes["redux_up.weight"][1],
            "txt_in_features": shapes["redux_down.weight"][0],
        },
    ),
    names=Names({"redux_up": "redux_up", "redux_down": "redux_down"}),
)


DEPTHS = (-2, -11, -20)
"""The layers, from the end, whose states USO's projector reads."""

EMBEDDER = "feature_embedder."
USO = KnownModel(
    name="uso",
    title="USO's style projector",
    marks=(EMBEDDER + "mid_layer_norm.bias", EMBEDDER + "high_embedding_linear.0.weight"),
    module=Module(
        "loraloom.models.style_projector:StyleProjector",
        lambda shapes: {
            "seen": shapes[EMBEDDER + "high_embedding_linear.0.weight"][1],
            "tokens": shapes[EMBEDDER + "high_embedding_linear.0.weight"][0],
            "reads": shapes[EMBEDDER + "high_projection.weight"][1],
            "width": shapes[EMBEDDER + "high_projection.weight"][0],
        },
    ),
    names=Names({EMBEDDER + "{*}": "{*}"}),
)


@dataclass(frozen=True, eq=False, slots=True)
class StyleTokens:
    """Tokens (B, N, width) that stand before a prompt's in the network, as the option `STYLES` of a model."""

    tokens: Tensor


STYLES = "styles"


def check_model_patch(header: Header) -> None:
    """ModelFileError where a file is no model patch."""
    if not USO.matches(native_shapes(header, "")):
        raise ModelFileError(
            f"{header.path}: no model patch that is known here: {looks_like(header)}. Known is {USO.title}"
        )


def find_picture_encoder(
    header: Header, *prefixes: str
) -> tuple[PictureEncoderKind, Sequence[NamedTensor]] | None:
    """The picture encoder that a file holds under one of these prefixes, in Hugging Face's or OpenCLIP's
    layout, and its tensors by native name."""
    for prefix in prefixes:
        theirs = native_shapes(header, prefix)
        for tensors in (as_named(theirs), open_clip_vision(theirs) or ()):
            shapes = {tensor.name: named_shape(theirs, tensor) for tensor in tensors}
            for kind in KINDS:
                if shapes and kind.matches(shapes):
                    return kind, [replace(tensor, key=prefix + tensor.key) for tensor in tensors]
    return None


def no_picture_encoder(header: Header) -> ModelFileError:
    """Says what a file looks like instead."""
    known = " and ".join(kind.title for kind in KINDS)
    return ModelFileError(
        f"{header.path}: no picture encoder that is known here: {looks_like(header)}. Known are {known}, in "
        "Hugging Face's or OpenCLIP's layout"
    )


def check_style_model(header: Header) -> None:
    """ModelFileError where a file is no style model."""
    if not REDUX.matches(native_shapes(header, "")):
        raise ModelFileError(
            f"{header.path}: no style model that is known here: {looks_like(header)}. Known is {REDUX.title}"
        )


def fitted(kind: PictureEncoderKind, pictures: Tensor, size: int, crop: bool) -> Tensor:
    """(B, H, W, 3 or 4) in [0, 1] → (B, 3, size, size) as the encoder reads it: resized as a whole or, of a
    square from the middle; values rounded to bytes."""
    from torch.nn import functional as F

    x = pictures[..., :3].movedim(-1, 1)
    height, width = x.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        whole = (round(scale * height), round(scale * width)) if crop else (size, size)
        x = F.interpolate(x, size=whole, mode="bicubic", antialias=True)
        top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
        x = x[..., top : top + size, left : left + size]
    x = (x * 255).clamp(0, 255).round() / 255
    mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (kind.mean, kind.deviation))
    return (x - mean) / deviation


def see(module: Any, pixels: Tensor) -> PictureStates:
    """States in float32, on the host. pixels: (B, 3, size, size) as `fitted` makes them, on the module's
    device."""
    import torch

    after: list[Tensor] = []

    def keep(layer: Any, given: Any, made: Any) -> None:
        after.append((made[0] if isinstance(made, tuple) else made).float().cpu())

    layers = getattr(module, "vision_model", module).encoder.layers
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        found = module(pixel_values=pixels)
    finally:
        for hook in hooks:
            hook.remove()
    states, whole = found.last_hidden_state.float().cpu(), torch.stack(after, dim=1)
    embeds = found.image_embeds.float().cpu() if hasattr(found, "image_embeds") else states
    return PictureStates(states, whole[:, -2], embeds, whole)


def tokens_of(encoder: PictureEncoder) -> int:
    """How many tokens an encoder makes of a picture."""
    return encoder.weights.shapes[EMBEDDINGS + "position_embedding.weight"][0]
