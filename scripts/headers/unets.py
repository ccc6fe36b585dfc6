"""Checkpoints of Stable Diffusion: UNet, autoencoder and text encoders in one file."""

from __future__ import annotations

from headers.autoencoders import kl_autoencoder
from headers.layouts import Shapes, Tensors, table, typed, under
from tests.tiny_models import unet_shapes

MODEL = "model.diffusion_model."
AUTOENCODER = under("first_stage_model.", kl_autoencoder(4, quant=("", "")))
CLIP_L = table("clip", d=768, n=12)
OPEN_CLIP_G = table("open_clip", d=1280, n=32)
EMA: Tensors = {"model_ema.decay": ("F32", ()), "model_ema.num_updates": ("I32", ())}
NOISE_SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
TRAINING: Tensors = EMA | dict.fromkeys(NOISE_SCHEDULE, ("F32", (1000,)))
"""What checkpoints of Stable Diffusion 1 and 2 hold besides the networks."""


def with_positions(prefix: str, tensors: Tensors) -> Tensors:
    """With the numbers of the positions that Hugging Face's CLIP kept among its weights."""
    return tensors | {f"{prefix}text_model.embeddings.position_ids": ("I64", (1, 77))}


def sd_unet(context: int, in_channels: int = 4, linear: bool = False) -> Shapes:
    """The UNet of Stable Diffusion 1.5 and 2."""
    levels, depths = (1, 2, 4, 4), (1, 1, 1, 0)
    more = {"resnets": 2, "context": context, "in_channels": in_channels}
    return unet_shapes(width=320, levels=levels, depths=depths, linear=linear, **more)


def sd15(in_channels: int = 4) -> Tensors:
    start = "cond_stage_model.transformer."
    shapes = under(MODEL, sd_unet(768, in_channels)) | AUTOENCODER | under(start, CLIP_L)
    return with_positions(start, typed("F32", shapes) | TRAINING)


def sd21() -> Tensors:
    encoder = under("cond_stage_model.model.", table("open_clip", d=1024, n=24))
    return typed("F32", under(MODEL, sd_unet(1024, linear=True)) | AUTOENCODER | encoder) | TRAINING


def sdxl_unet() -> Shapes:
    sizes = {"width": 320, "middle": 10, "context": 2048, "label": 2816, "resnets": 2}
    return unet_shapes(levels=(1, 2, 4), depths=(0, 2, 10), linear=True, **sizes)


def refiner_unet() -> Shapes:
    sizes = {"width": 384, "middle": 4, "context": 1280, "label": 2560, "resnets": 2}
    return unet_shapes(levels=(1, 2, 4, 4), depths=(0, 4, 4, 0), linear=True, **sizes)


def sdxl() -> Tensors:
    start = "conditioner.embedders."
    encoders = under(f"{start}0.transformer.", CLIP_L) | under(f"{start}1.model.", OPEN_CLIP_G)
    return with_positions(
        f"{start}0.transformer.", typed("F16", under(MODEL, sdxl_unet()) | AUTOENCODER | encoders)
    )


def refiner() -> Tensors:
    encoder = under("conditioner.embedders.0.model.", OPEN_CLIP_G)
    return typed("F16", under(MODEL, refiner_unet()) | AUTOENCODER | encoder)
