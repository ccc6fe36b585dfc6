"""Published autoencoders and text encoders."""

from __future__ import annotations

from headers.autoencoders import kl_autoencoder, wan_autoencoder
from headers.diffusion import DIGEST, HASHED
from headers.layouts import Shapes, Tensors, table, typed, under
from headers.published import PT, Published, diffusers
from headers.storage import CONVROT, FP8_MARK, fp8_marked, fp8_old, int8_convrot
from headers.unets import CLIP_L, EMA, with_positions

SD_KL = kl_autoencoder(4, quant=("", ""))
QWEN_IMAGE_21 = wan_autoencoder(64, (1, 2, 4, 8, 8), widths=(96, 144), pixels=4, frames=1, nested=True)


def flux2_autoencoder(decoder: int = 128) -> Tensors:
    """As Black Forest Labs publish it: the quantisation layers within encoder and decoder."""
    shapes = kl_autoencoder(32, quant=("encoder.", "decoder."), decoder=decoder)
    shapes |= {"bn.running_mean": (128,), "bn.running_var": (128,)}
    return typed("F32", shapes) | {"bn.num_batches_tracked": ("I64", ())}


AUTOENCODERS = (
    Published(
        "sd_vae",
        "vae-ft-mse-840000-ema-pruned.safetensors",
        lambda: typed("F32", SD_KL) | EMA,
        334641190,
        metadata=PT,
        old_writer=True,
    ),
    Published("sdxl_vae", "sdxl_vae.safetensors", lambda: typed("F32", SD_KL) | EMA, 334641164),
    Published(
        "flux1_ae", "ae.safetensors", lambda: typed("F32", kl_autoencoder(16)), 335304388, unexplained=472
    ),
    Published(
        "flux2_vae",
        "flux2-vae.safetensors of flux2-dev",
        lambda: diffusers("AutoencoderKLFlux2", "F32"),
        336213556,
        metadata=PT,
        native="flux2_ae",
        note="in diffusers' layout",
    ),
    Published("flux2_ae", "ae.safetensors of FLUX.2-dev", flux2_autoencoder, 336211292),
    Published(
        "flux2_small_decoder",
        "full_encoder_small_decoder.safetensors",
        lambda: flux2_autoencoder(96),
        249519092,
    ),
    Published(
        "qwen_image_vae",
        "qwen_image_vae.safetensors",
        lambda: typed("BF16", wan_autoencoder(16, (1, 2, 4, 4))),
        253806246,
        note=DIGEST,
    ),
    Published(
        "qwen_image_21_vae",
        "qwen_image_2.1_vae_bf16.safetensors",
        lambda: typed("BF16", QWEN_IMAGE_21),
        675509688,
        metadata={"modelspec.architecture": "qwen_image_2.1_vae", "format": "pt"},
        note=HASHED,
    ),
)

QWEN3_06B = under("model.", table("qwen3", v=151936, d=1024, n=28, h=2048, i=3072))
QWEN3_4B = under("model.", table("qwen3", v=151936, d=2560, n=36, h=4096, i=9728))
QWEN3_8B = under("model.", table("qwen3", v=151936, d=4096, n=36, h=4096, i=12288))
QWEN3_8B_HEAD = QWEN3_8B | {"lm_head.weight": (151936, 4096)}
TOWER_4B = under("model.visual.", table("qwen3vl_tower", d=1024, n=24, i=4096, o=2560))
TOWER_8B = under("model.visual.", table("qwen3vl_tower", d=1152, n=27, i=4304, o=4096))
CLIP_G = table("clip", d=1280, n=32) | {"text_projection.weight": (1280, 1280)}
T5 = table("t5xxl") | {"encoder.embed_tokens.weight": (32128, 4096)}
TEKKEN = 19399895
"""Bytes of Mistral Small 3's tekken.json, which ComfyUI's file carries as a tensor."""
SPIECE = 4241003
"""Bytes of Gemma's sentencepiece model, likewise."""


def in_language_model(name: str) -> bool:
    return name.startswith("model.layers.") or name in ("model.embed_tokens", "lm_head")


def text(
    name: str, file: str, kind: str, dtype: str, shapes: Shapes, size: int = 0, pt: bool = False
) -> Published:
    """A text encoder in one type. pt: whether its metadata say so."""
    metadata = PT if pt else None
    note = "" if size else "names and shapes of its class; no exact size was at hand to compare with"
    return Published(name, file, lambda: typed(dtype, shapes), size, kind, metadata, note=note)


TEXT = (
    text("clip_l", "clip_l.safetensors", "clip_l", "F16", CLIP_L, 246144152, pt=True),
    text("clip_g", "clip_g.safetensors", "clip_g", "F16", CLIP_G, 1389382176, pt=True),
    Published(
        "clip_h",
        "text_encoder/model.safetensors of stable-diffusion-2-1",
        lambda: with_positions("", typed("F32", table("clip", d=1024, n=23))),
        1361597018,
        family="clip_h",
        metadata=PT,
        old_writer=True,
    ),
    text("t5xxl_fp16", "t5xxl_fp16.safetensors", "t5xxl", "F16", T5, 9787841024),
    text("t5xxl_fp8", "t5xxl_fp8_e4m3fn.safetensors", "t5xxl", "F8_E4M3", T5, 4893934904),
    text("qwen_3_06b", "qwen_3_06b_base.safetensors", "qwen3", "BF16", QWEN3_06B, 1192135096, pt=True),
    text("qwen_3_4b", "qwen_3_4b.safetensors", "qwen3", "BF16", QWEN3_4B, 8044982048),
    text("qwen_3_8b", "qwen_3_8b.safetensors", "qwen3", "BF16", QWEN3_8B_HEAD, 16381517176),
    text("qwen_25_vl_7b", "qwen_2.5_vl_7b.safetensors", "qwen25vl", "BF16", table("qwen25_vl_7b")),
    Published(
        "qwen_25_vl_7b_fp8_scaled",
        "qwen_2.5_vl_7b_fp8_scaled.safetensors",
        lambda: fp8_old(table("qwen25_vl_7b"), lambda n: n not in ("model.embed_tokens", "lm_head"), "BF16"),
        9384670680,
        family="qwen25vl",
        note=DIGEST,
    ),
    Published(
        "qwen3vl_4b_fp8_scaled",
        "qwen3vl_4b_fp8_scaled.safetensors",
        lambda: fp8_marked(QWEN3_4B | TOWER_4B, lambda n: n.startswith("model.layers.") and "norm" not in n),
        5242467968,
        family="qwen3vl",
        metadata=PT,
        mark=FP8_MARK,
        note="64 bytes long is each mark; what it says is a guess",
    ),
    Published(
        "qwen3vl_8b_int8_convrot",
        "qwen3vl_8b_int8_convrot.safetensors",
        lambda: int8_convrot(QWEN3_8B_HEAD | TOWER_8B, lambda n: in_language_model(n) and "norm" not in n),
        9350798360,
        family="qwen3vl",
        metadata=PT,
        mark=CONVROT,
        note=HASHED,
    ),
    Published(
        "mistral_3_small_flux2",
        "mistral_3_small_flux2_bf16.safetensors",
        lambda: typed("BF16", table("mistral_3_small")) | {"tekken_model": ("U8", (TEKKEN,))},
        35584897447,
        family="mistral3",
    ),
    Published(
        "gemma_2_2b",
        "gemma_2_2b_fp16.safetensors",
        lambda: typed("F16", table("gemma_2_2b")) | {"spiece_model": ("U8", (SPIECE,))},
        5232958283,
        family="gemma2",
    ),
)
