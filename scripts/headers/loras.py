"""Published LoRA files."""

from __future__ import annotations

from headers.diffusion import KLEIN_4B, QWEN_IMAGE, QWEN_IMAGE_21, SDXL_UNET, Z_IMAGE, flux1, in_blocks
from headers.layouts import Shapes, table, under, without
from headers.lora import KOHYA, PEFT, PEFT_NAMED, kohya_names, lora, modules, split_rows
from headers.published import PT, Published, diffusers
from headers.unets import sdxl_unet

DUMPED = "its names and shapes are published as a test fixture of InvokeAI; the types of its data are not"


def in_attention(name: str) -> bool:
    """Whether a layer of a UNet is one of those that sd-scripts trains by default."""
    return "transformer_blocks" in name or name.endswith(("proj_in", "proj_out"))


def z_image_apart() -> Shapes:
    """Every linear layer of Z-Image's blocks but the modulation, with query, key and value apart."""
    blocks = {
        name: shape for name, shape in Z_IMAGE.items() if "attention." in name or "feed_forward" in name
    }
    apart = split_rows(blocks, {"qkv.weight": ("to_q.weight", "to_k.weight", "to_v.weight")})
    return modules({name.replace(".out.", ".to_out.0."): shape for name, shape in apart.items()})


def qwen_image_21_apart() -> Shapes:
    """The layers of Qwen-Image 2.1's blocks, with gate and up apart."""
    halves = ("gate_layer.weight", "proj.weight")
    return modules(split_rows(QWEN_IMAGE_21, {"gate_up.weight": halves}), in_blocks)


def krea2_diffusers() -> Shapes:
    """Every linear layer of Krea 2 in diffusers' names."""
    return modules({name: shape for name, (_, shape) in diffusers("Krea2Transformer2DModel").items()})


def kohya_unet(**config: object) -> Shapes:
    """Every layer of a UNet's blocks, in diffusers' names with underscores."""
    shapes = {name: shape for name, (_, shape) in diffusers("UNet2DConditionModel", **config).items()}
    outside = ("conv_in", "conv_out", "time_embedding", "add_embedding")
    return kohya_names(modules(shapes, lambda name: not name.startswith(outside)))


LORAS = (
    Published(
        "lcm_lora_sd15",
        "pytorch_lora_weights.safetensors of lcm-lora-sdv1-5",
        lambda: lora(kohya_unet(cross_attention_dim=768), 64, "F16", KOHYA, "F16"),
        134621556,
        "sd15",
        PT,
    ),
    Published(
        "tcd_lora_sdxl",
        "pytorch_lora_weights.safetensors of TCD-SDXL-LoRA",
        lambda: lora(kohya_unet(**SDXL_UNET), 64, "F16", KOHYA, "F16"),
        393854624,
        "sdxl",
        PT,
    ),
    Published(
        "pixel_art_xl",
        "pixel-art-xl.safetensors",
        lambda: lora(kohya_names(modules(sdxl_unet(), in_attention)), 32, "BF16", KOHYA, "BF16"),
        170543052,
        "sdxl",
        {
            "ss_base_model_version": "sdxl_base_v0-9",
            "ss_network_module": "networks.lora",
            "ss_sd_model_name": "sd_xl_base_0.9.safetensors",
        },
        unexplained=3472,
        note="its 2166 tensors of 722 modules and three of its metadata are published as well",
    ),
    Published(
        "flux1_kohya",
        "a LoRA of sd-scripts for Flux.1 (Civitai's 779247)",
        lambda: lora(kohya_names(modules(flux1(), in_blocks)), 16, "BF16", KOHYA, "BF16"),
        family="flux",
        note=DUMPED,
    ),
    Published(
        "flux1_aitoolkit",
        "a LoRA of ai-toolkit for Flux.1",
        lambda: lora(
            under("diffusion_model.", modules(without(flux1(), "mod"), in_blocks)), 16, "BF16", PEFT
        ),
        family="flux",
        note=DUMPED,
    ),
    Published(
        "z_image_distill_patch",
        "z_image_turbo_distill_patch_lora_bf16.safetensors",
        lambda: lora(under("diffusion_model.", z_image_apart()), 32, "BF16", PEFT_NAMED),
        158826336,
        "z_image",
    ),
    Published(
        "qwen_image_lightning",
        "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        lambda: lora(modules(without(QWEN_IMAGE, "_mod"), in_blocks), 64, "BF16", KOHYA, "BF16"),
        849608296,
        "qwen_image",
    ),
    Published(
        "qwen_image_21_8step",
        "p_qwen_image_2.1_8step_v0.1.safetensors",
        lambda: lora(under("diffusion_model.", qwen_image_21_apart()), 64, "BF16", PEFT),
        335606104,
        "qwen_image21",
        unexplained=40,
    ),
    Published(
        "krea2_darkbrush",
        "krea2_darkbrush.safetensors",
        lambda: lora(under("transformer.", krea2_diffusers()), 32, "F32", PEFT),
        469291992,
        "krea2",
        note="rank 32 in F32 or rank 64 in F16: the size does not tell",
    ),
    Published(
        "krea2_kohya",
        "Krea2_Don-Martin_LoRA-step00001200.safetensors",
        lambda: lora(kohya_names(modules(without(table("krea2"), "mod."))), 32, "BF16", KOHYA, "BF16"),
        family="krea2",
        note="264 modules; names and shapes of some are published as a test fixture of InvokeAI",
    ),
    Published(
        "flux2_klein_aitoolkit",
        "ai-toolkit's spelling for Flux.2 klein 4B",
        lambda: lora(under("diffusion_model.", modules(KLEIN_4B, in_blocks)), 16, "BF16", PEFT),
        family="flux2",
        note="made by rule: no published file was at hand to compare with",
    ),
    Published(
        "anima_turbo",
        "anima-turbo-lora-v0.2.safetensors",
        lambda: lora(
            under("diffusion_model.", modules(table("anima"), lambda name: "blocks." in name)),
            32,
            "BF16",
            PEFT,
        ),
        148902616,
        "anima",
        PT,
    ),
)
