"""OpenCLIP ViT-H (Ilharco et al. 2021): Stable Diffusion 2."""

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
    name="clip_h",
    title="OpenCLIP-H",
    layouts=(open_clip, hugging_face_clip),
    sizes=(Size("h", 1024, 24),),
    measure=clip_measure,
    blueprint=partial(clip_blueprint, quick_gelu=False),
    vocabulary=Vocabulary(clip_tokenizer, start=49406, end=49407, pad=0, chunk=77),
    tokens_table=(CLIP_TOKENS,),
    prefixes=("cond_stage_model.model.", "text_encoders.clip_h.transformer."),
    lora=LoraNames(2, ("clip_h",)),
)
