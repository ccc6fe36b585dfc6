"""OpenCLIP ViT-bigG (Ilharco et al. 2021): SDXL, its refiner, SD3."""

from __future__ import annotations

from functools import partial

from loraloom.models.encoder import EncoderKind, LoraNames, Size, Vocabulary
from loraloom.models.parts.encoder_layouts import (
    CLIP_TOKENS,
    clip_blueprint,
    clip_measure,
    clip_tokenizer,
    hugging_face_clip,
    open_clip,
)

ENCODER = EncoderKind(
    name="clip_g",
    title="OpenCLIP-bigG",
    layouts=(open_clip, hugging_face_clip),
    sizes=(Size("g", 1280, 32),),
    measure=clip_measure,
    blueprint=partial(clip_blueprint, quick_gelu=False),
    vocabulary=Vocabulary(clip_tokenizer, start=49406, end=49407, pad=0, chunk=77),
    tokens_table=(CLIP_TOKENS,),
    prefixes=(
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",
        "text_encoders.clip_g.transformer.",
    ),
    lora=LoraNames(3, ("clip_g",), number=2),
)
