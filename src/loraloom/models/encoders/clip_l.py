"""CLIP-L (Radford et al. 2021): Stable Diffusion 1.5, SDXL, SD3, Flux.1."""

from __future__ import annotations

from functools import partial

from loraloom.models.encoder import EncoderKind, LoraNames, Size, Vocabulary
from loraloom.models.parts.encoder_layouts import (
    CLIP_TOKENS,
    clip_blueprint,
    clip_measure,
    clip_tokenizer,
    hugging_face_clip,
    oldest_clip,
    open_clip,
)

ENCODER = EncoderKind(
    name="clip_l",
    title="CLIP-L",
    layouts=(hugging_face_clip, oldest_clip, open_clip),
    sizes=(Size("l", 768, 12),),
    measure=clip_measure,
    blueprint=partial(clip_blueprint, quick_gelu=True),
    vocabulary=Vocabulary(clip_tokenizer, start=49406, end=49407, pad=49407, chunk=77),
    tokens_table=(CLIP_TOKENS,),
    prefixes=(
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.clip_l.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    lora=LoraNames(1, ("clip_l",)),
)
