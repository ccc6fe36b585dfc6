"""Published diffusion networks."""

from __future__ import annotations

from headers.autoencoders import kl_autoencoder
from headers.layouts import Shapes, Tensors, table, typed, under, without
from headers.published import PT, Published, diffusers
from headers.storage import CONVROT, fp8, fp8_layers, fp8_old, in_float32, int8_convrot
from headers.unets import CLIP_L, MODEL, refiner, sd15, sd21, sdxl

SDXL_UNET: dict[str, object] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

FLUX2_DEV = table("flux2", d=6144, n=8, m=48, c=15360)
KLEIN_4B = without(table("flux2", d=3072, n=5, m=20, c=7680), "guidance_in")
KLEIN_9B = without(table("flux2", d=4096, n=8, m=24, c=12288), "guidance_in")
QWEN_IMAGE = table("qwen_image")
QWEN_IMAGE_LAYERED = QWEN_IMAGE | {"time_text_embed.addition_t_embedding.weight": (2, 3072)}
QWEN_IMAGE_21 = table("qwen_image_21")
KREA2 = table("krea2")
Z_IMAGE = table("z_image")


def flux1(in_channels: int = 64) -> Shapes:
    return table("flux1") | {"img_in.weight": (3072, in_channels)}


def sd35(**sizes: int) -> Tensors:
    shapes = table("sd35", **sizes) | (table("sd35_dual") if sizes["n"] == 24 else {})
    parts = under(MODEL, shapes) | under("first_stage_model.", kl_autoencoder(16))
    return typed("F16", parts)


def flux1_checkpoint(network: Shapes) -> Tensors:
    """Everything in one file, as ComfyUI publishes it: fp8 but for CLIP and the autoencoder."""
    clip = CLIP_L | {"text_projection.weight": (768, 768)}
    in_fp8 = under(MODEL, network) | under("text_encoders.t5xxl.transformer.", table("t5xxl"))
    found = typed("F8_E4M3", in_fp8) | typed("F16", under("text_encoders.clip_l.transformer.", clip))
    found |= typed("F32", under("vae.", kl_autoencoder(16)))
    return found | {f"text_encoders.{name}.logit_scale": ("F32", ()) for name in ("clip_l", "t5xxl")}


def in_blocks(name: str) -> bool:
    return name.startswith(("double_blocks.", "single_blocks.", "transformer_blocks.", "blocks."))


def krea2_linear(name: str) -> bool:
    """Whether a weight is of a linear layer in Krea 2's blocks, those of the text included."""
    in_any_block = name.startswith(("blocks.", "txtfusion.layerwise_blocks.", "txtfusion.refiner_blocks."))
    return in_any_block and len(KREA2[name]) == 2


def in_z_image_blocks(name: str) -> bool:
    return name.startswith(("layers.", "noise_refiner.", "context_refiner."))


FLUX2_FP8 = fp8(FLUX2_DEV, lambda name: in_blocks(name) and "attn" not in name)
KLEIN_9B_FP8 = fp8(KLEIN_9B, in_blocks)
UNTOLD = "F16 or BF16: the size does not tell"
SAME_REST = "as many bytes are not known as in the file of the network alone"
HASHED = "the SHA-256 of its header is published too, and agrees"
DIGEST = "a digest of its names, types and shapes is published too, and agrees"


def bf16(
    name: str, file: str, shapes: Shapes, size: int, family: str, note: str = "", rest: int = 0
) -> Published:
    """A network alone in bfloat16 under its original names. rest: unexplained bytes."""
    return Published(name, file, lambda: typed("BF16", shapes), size, family, unexplained=rest, note=note)


UNETS = (
    Published("sd15", "v1-5-pruned-emaonly.safetensors", sd15, 4265146304, "sd15", PT, old_writer=True),
    Published(
        "sd15_inpainting",
        "sd-v1-5-inpainting.safetensors",
        lambda: sd15(in_channels=9),
        family="sd15",
        note="as the file of Stable Diffusion 1.5, with nine input channels",
    ),
    Published(
        "sd15_diffusers",
        "unet/diffusion_pytorch_model.fp16.safetensors of stable-diffusion-v1-5",
        lambda: diffusers("UNet2DConditionModel", "F16", cross_attention_dim=768),
        1719125304,
        "sd15",
        PT,
        native="sd15",
    ),
    Published("sd21", "v2-1_768-ema-pruned.safetensors", sd21, 5214604494, "sd20", PT, old_writer=True),
    Published("sdxl", "sd_xl_base_1.0.safetensors", sdxl, 6938078334, "sdxl", unexplained=37190),
    Published(
        "sdxl_diffusers",
        "unet/diffusion_pytorch_model.fp16.safetensors of stable-diffusion-xl-base-1.0",
        lambda: diffusers("UNet2DConditionModel", "F16", **SDXL_UNET),
        5135149760,
        "sdxl",
        PT,
        native="sdxl",
    ),
    Published(
        "sdxl_refiner",
        "sd_xl_refiner_1.0.safetensors",
        refiner,
        6075981930,
        "sdxl_refiner",
        unexplained=37882,
    ),
)

FLUX_KIN = (
    bf16("flux1_dev", "flux1-dev.safetensors", flux1(), 23802932552, "flux", rest=29072),
    bf16(
        "flux1_schnell",
        "flux1-schnell.safetensors",
        without(flux1(), "guidance_in"),
        23782506688,
        "flux",
        rest=63144,
    ),
    bf16("flux1_fill", "flux1-fill-dev.safetensors", flux1(384), 23804922408, "flux", rest=52848),
    bf16("flux1_canny", "flux1-canny-dev.safetensors", flux1(128), 0, "flux", "flux1-dev with a wider input"),
    Published(
        "flux1_dev_diffusers",
        "transformer of FLUX.1-dev, in three parts",
        lambda: diffusers("FluxTransformer2DModel", guidance_embeds=True),
        family="flux",
        native="flux1_dev",
        note="from diffusers' class",
    ),
    Published(
        "flux1_krea_dev_fp8_scaled",
        "flux1-krea-dev_fp8_scaled.safetensors",
        lambda: fp8_old(flux1(), lambda name: True, "F16"),
        11904639672,
        "flux",
    ),
    Published(
        "flux1_dev_fp8",
        "flux1-dev-fp8.safetensors",
        lambda: flux1_checkpoint(flux1()),
        17246524772,
        "flux",
        unexplained=29072,
        note=SAME_REST,
    ),
    Published(
        "flux1_schnell_fp8",
        "flux1-schnell-fp8.safetensors",
        lambda: flux1_checkpoint(without(flux1(), "guidance_in")),
        17236328572,
        "flux",
        unexplained=63144,
        note=SAME_REST,
    ),
    bf16("chroma1_hd", "Chroma1-HD.safetensors", table("chroma"), 17800038288, "chroma"),
    bf16("flux2_dev", "flux2-dev.safetensors", FLUX2_DEV, 64446596128, "flux2"),
    bf16("flux2_klein_4b", "flux-2-klein-4b.safetensors", KLEIN_4B, 7751105712, "flux2"),
    bf16("flux2_klein_9b", "flux-2-klein-9b.safetensors", KLEIN_9B, 18157185168, "flux2"),
    Published(
        "flux2_dev_fp8mixed",
        "flux2_dev_fp8mixed.safetensors",
        lambda: FLUX2_FP8,
        35455599592,
        "flux2",
        fp8_layers(FLUX2_FP8),
    ),
    Published(
        "flux2_klein_9b_fp8",
        "flux-2-klein-9b-fp8.safetensors",
        lambda: KLEIN_9B_FP8,
        9433061528,
        "flux2",
        fp8_layers(KLEIN_9B_FP8),
    ),
    bf16(
        "flux3_klein",
        "FLUX 3 klein's transformer",
        table("flux3_klein"),
        0,
        "flux3",
        "original names by diffusers' converter; no published file was at hand to compare with",
    ),
)

OTHERS = (
    bf16("z_image_turbo", "z_image_turbo_bf16.safetensors", Z_IMAGE, 12309866400, "z_image"),
    Published(
        "z_image_turbo_diffusers",
        "transformer of Z-Image-Turbo, in three parts",
        lambda: typed("BF16", table("z_image_diffusers")),
        family="z_image",
        native="z_image_turbo",
        note="as diffusers' class",
    ),
    Published(
        "z_image_turbo_int8_convrot",
        "z_image_turbo_int8_convrot.safetensors",
        lambda: int8_convrot(Z_IMAGE, in_z_image_blocks, "F32"),
        6201001296,
        "z_image",
        {},
        mark=CONVROT,
        note="its 202 tensors in I8, 202 in U8 and 453 in F32 are published as well",
    ),
    bf16("qwen_image", "qwen_image_bf16.safetensors", QWEN_IMAGE, 40861031488, "qwen_image", DIGEST),
    Published(
        "qwen_image_edit_2511",
        "qwen_image_edit_2511_bf16.safetensors",
        lambda: typed("BF16", QWEN_IMAGE) | {"__index_timestep_zero__": ("F32", (0,))},
        40861031560,
        "qwen_image",
    ),
    bf16(
        "qwen_image_layered",
        "qwen_image_layered_bf16.safetensors",
        QWEN_IMAGE_LAYERED,
        0,
        "qwen_image",
        "as diffusers' class with use_additional_t_cond",
    ),
    Published(
        "qwen_image_21_int8_convrot",
        "qwen_image_2.1_int8_convrot.safetensors",
        lambda: int8_convrot(QWEN_IMAGE_21, lambda name: in_blocks(name) and "norm" not in name),
        7256783064,
        "qwen_image21",
        PT,
        mark=CONVROT,
        note=HASHED,
    ),
    Published(
        "krea2_turbo",
        "krea2_turbo_bf16.safetensors",
        lambda: in_float32(typed("BF16", KREA2), lambda name: not krea2_linear(name)),
        26283332608,
        "krea2",
    ),
    Published(
        "krea2_turbo_int8_convrot",
        "krea2_turbo_int8_convrot.safetensors",
        lambda: in_float32(int8_convrot(KREA2, in_blocks), lambda name: name.endswith(".scale")),
        13492686496,
        "krea2",
        {},
        mark=CONVROT,
    ),
    Published(
        "sd35_large",
        "sd3.5_large.safetensors",
        lambda: sd35(n=38, l=37, d=2432, p=192),
        16460379262,
        "sd3",
        unexplained=19864,
        note=UNTOLD,
    ),
    Published(
        "sd35_medium",
        "sd3.5_medium.safetensors",
        lambda: sd35(n=24, l=23, d=1536, p=384),
        5107104286,
        "sd3",
        unexplained=15904,
        note=UNTOLD,
    ),
    bf16(
        "lumina2",
        "lumina_2_model_bf16.safetensors",
        table("lumina2"),
        0,
        "lumina2",
        "with norm_final, which the network has no use for; no exact size was at hand to compare with",
    ),
    bf16("anima_base", "anima-base-v1.0.safetensors", under("net.", table("anima")), 4182218328, "anima"),
)

DIFFUSION = UNETS + FLUX_KIN + OTHERS
