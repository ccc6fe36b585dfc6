"""Compares the names and shapes of `headers/` with the classes of diffusers and transformers.

usage: PYTHONPATH=.:src .venv/bin/python scripts/header_classes.py

Each network is renamed by diffusers' own converter for single files (on tensors without memory) and compared
with the class, built with the published configuration. Prints one line each; exit code 1 where any differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils as converters
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from headers import components, diffusion, unets
from headers.autoencoders import kl_autoencoder, wan_autoencoder
from headers.layouts import Shapes, table, under, without

Compared = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]


def state(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def renamed(convert: Callable[..., Mapping[str, torch.Tensor]], shapes: Shapes, **more: object) -> Shapes:
    """Shapes after one of diffusers' converters."""
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    return {name: tuple(value.shape) for name, value in convert(tensors, **more).items()}


def transformer(convert: str, shapes: Shapes, name: str, **config: object) -> Compared:
    """A diffusion transformer against its class. convert: the middle of the converter's name; "": none."""
    function = getattr(converters, f"convert_{convert}_to_diffusers") if convert else None

    def compared() -> tuple[Shapes, Shapes]:
        ours = renamed(function, shapes) if function else shapes
        return ours, state(getattr(diffusers, name)(**config))

    return compared


def unet(shapes: Shapes, **config: object) -> Compared:
    def compared() -> tuple[Shapes, Shapes]:
        module = diffusers.UNet2DConditionModel(**config)
        ours = renamed(
            converters.convert_ldm_unet_checkpoint, under(unets.MODEL, shapes), config=module.config
        )
        return ours, state(module)

    return compared


def autoencoder(shapes: Shapes, name: str = "AutoencoderKL", **config: object) -> Compared:
    def compared() -> tuple[Shapes, Shapes]:
        module = getattr(diffusers, name)(**config)
        return renamed(converters.convert_ldm_vae_checkpoint, shapes, config=module.config), state(module)

    return compared


def encoder(shapes: Shapes, name: str, prefix: str = "", **config: object) -> Compared:
    """A text encoder against its class; prefix: what the file's names have before the class's."""
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}

    def compared() -> tuple[Shapes, Shapes]:
        model = getattr(transformers, name)
        return own, state(model(model.config_class(**config)))

    return compared


KL: dict[str, object] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
NO_QUANT: dict[str, object] = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}
REFINER: dict[str, object] = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}
QWEN3: dict[str, object] = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
QWEN3_4B: dict[str, object] = QWEN3 | {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "intermediate_size": 9728,
}
QWEN3_8B = QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288}
QWEN3_06B = QWEN3 | {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
}
TOWER_4B: dict[str, object] = {
    "hidden_size": 1024,
    "depth": 24,
    "intermediate_size": 4096,
    "out_hidden_size": 2560,
    "deepstack_visual_indexes": [5, 11, 17],
}
TOWER_8B: dict[str, object] = {
    "hidden_size": 1152,
    "depth": 27,
    "intermediate_size": 4304,
    "out_hidden_size": 4096,
    "deepstack_visual_indexes": [8, 16, 24],
}
QWEN25: dict[str, object] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
}
TOWER_25: dict[str, object] = {
    "hidden_size": 1280,
    "depth": 32,
    "intermediate_size": 3420,
    "out_hidden_size": 3584,
}
MISTRAL: dict[str, object] = {
    "vocab_size": 131072,
    "hidden_size": 5120,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 32768,
}
CLIP: dict[str, object] = {"vocab_size": 49408, "max_position_embeddings": 77}


def clip(width: int, layers: int, projection: bool = False) -> Compared:
    shapes = table("clip", d=width, n=layers)
    if projection:
        shapes["text_projection.weight"] = (width, width)
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    prefix = "" if projection else "text_model."
    more = CLIP | sizes | {"num_attention_heads": width // 64, "projection_dim": width}
    return encoder(shapes, name, prefix, **more)


def qwen_vision(
    shapes: Shapes, name: str, text: Mapping[str, object], tower: Mapping[str, object]
) -> Compared:
    """A Qwen-VL encoder: ComfyUI's files have the language model under "model.", the class under
    "language_model."."""
    own: Shapes = {}
    for key, shape in without(shapes, "lm_head").items():
        inner = key.removeprefix("model.")
        own[inner if inner.startswith("visual.") else f"language_model.{inner}"] = shape
    return encoder(own, name, text_config=dict(text), vision_config=dict(tower))


def anima_adapter() -> tuple[Shapes, Shapes]:
    start = "llm_adapter."
    shapes = {key.removeprefix(start): s for key, s in table("anima").items() if key.startswith(start)}
    return shapes, state(AnimaTextConditioner())


def wan_vae() -> tuple[Shapes, Shapes]:
    ours = renamed(converters.convert_wan_vae_to_diffusers, wan_autoencoder(16, (1, 2, 4, 4)))
    return ours, state(diffusers.AutoencoderKLQwenImage())


def flux2_vae(decoder: int = 128) -> Compared:
    shapes = kl_autoencoder(32, quant=("", ""), decoder=decoder)
    widths = (
        {} if decoder == 128 else {"decoder_block_out_channels": tuple(decoder * x for x in (1, 2, 4, 4))}
    )

    def compared() -> tuple[Shapes, Shapes]:
        ours, theirs = autoencoder(shapes, "AutoencoderKLFlux2", **widths)()
        return ours, without(theirs, "bn.")

    return compared


COMPARED: dict[str, Compared] = {
    "sd15": unet(unets.sd_unet(768), cross_attention_dim=768),
    "sd21": unet(unets.sd_unet(1024, linear=True), cross_attention_dim=1024, use_linear_projection=True),
    "sdxl": unet(unets.sdxl_unet(), **diffusion.SDXL_UNET),
    "sdxl_refiner": unet(unets.refiner_unet(), **REFINER),
    "flux1": transformer(
        "flux_transformer_checkpoint", diffusion.flux1(), "FluxTransformer2DModel", guidance_embeds=True
    ),
    "chroma": transformer("chroma_transformer_checkpoint", table("chroma"), "ChromaTransformer2DModel"),
    "flux2_dev": transformer("flux2_transformer_checkpoint", diffusion.FLUX2_DEV, "Flux2Transformer2DModel"),
    "flux2_klein_4b": transformer(
        "flux2_transformer_checkpoint",
        diffusion.KLEIN_4B,
        "Flux2Transformer2DModel",
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
        guidance_embeds=False,
    ),
    "flux2_klein_9b": transformer(
        "flux2_transformer_checkpoint",
        diffusion.KLEIN_9B,
        "Flux2Transformer2DModel",
        num_layers=8,
        num_single_layers=24,
        num_attention_heads=32,
        joint_attention_dim=12288,
        guidance_embeds=False,
    ),
    "flux3_klein": transformer(
        "flux3_transformer_checkpoint", table("flux3_klein"), "Flux3Transformer2DModel"
    ),
    "z_image": transformer("z_image_transformer_checkpoint", diffusion.Z_IMAGE, "ZImageTransformer2DModel"),
    "z_image_diffusers": transformer("", table("z_image_diffusers"), "ZImageTransformer2DModel"),
    "lumina2": transformer("lumina2", table("lumina2"), "Lumina2Transformer2DModel", cap_feat_dim=2304),
    "qwen_image": transformer("", diffusion.QWEN_IMAGE, "QwenImageTransformer2DModel"),
    "qwen_image_layered": transformer(
        "", diffusion.QWEN_IMAGE_LAYERED, "QwenImageTransformer2DModel", use_additional_t_cond=True
    ),
    "qwen_image_21": transformer(
        "qwen_image21_transformer_checkpoint", diffusion.QWEN_IMAGE_21, "QwenImage21Transformer2DModel"
    ),
    "krea2": transformer("krea2_transformer_checkpoint", table("krea2"), "Krea2Transformer2DModel"),
    "sd35_large": transformer(
        "sd3_transformer_checkpoint",
        table("sd35", n=38, l=37, d=2432, p=192),
        "SD3Transformer2DModel",
        num_layers=38,
        num_attention_heads=38,
        caption_projection_dim=2432,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    ),
    "sd35_medium": transformer(
        "sd3_transformer_checkpoint",
        table("sd35", n=24, l=23, d=1536, p=384) | table("sd35_dual"),
        "SD3Transformer2DModel",
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    ),
    "anima": transformer(
        "cosmos_transformer_checkpoint",
        under("net.", without(table("anima"), "llm_adapter")),
        "CosmosTransformer3DModel",
        num_attention_heads=16,
        extra_pos_embed_type=None,
    ),
    "anima_adapter": anima_adapter,
    "sd_vae": autoencoder(components.SD_KL, **KL),
    "flux1_ae": autoencoder(kl_autoencoder(16), **KL, **NO_QUANT),
    "flux2_vae": flux2_vae(),
    "flux2_small_decoder": flux2_vae(96),
    "qwen_image_vae": wan_vae,
    "clip_l": clip(768, 12),
    "clip_h": clip(1024, 23),
    "clip_g": clip(1280, 32, projection=True),
    "t5xxl": encoder(
        components.T5,
        "T5EncoderModel",
        d_model=4096,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
    ),
    "qwen_3_06b": encoder(components.QWEN3_06B, "Qwen3Model", "model.", **QWEN3_06B),
    "qwen_3_4b": encoder(components.QWEN3_4B, "Qwen3Model", "model.", **QWEN3_4B),
    "qwen_3_8b": encoder(components.QWEN3_8B, "Qwen3Model", "model.", **QWEN3_8B),
    "qwen3vl_4b": qwen_vision(components.QWEN3_4B | components.TOWER_4B, "Qwen3VLModel", QWEN3_4B, TOWER_4B),
    "qwen3vl_8b": qwen_vision(components.QWEN3_8B | components.TOWER_8B, "Qwen3VLModel", QWEN3_8B, TOWER_8B),
    "qwen_25_vl_7b": qwen_vision(table("qwen25_vl_7b"), "Qwen2_5_VLModel", QWEN25, TOWER_25),
    "mistral_3_small": encoder(table("mistral_3_small"), "MistralModel", "model.", **MISTRAL),
    "gemma_2_2b": encoder(table("gemma_2_2b"), "Gemma2Model", "model."),
}


def main() -> int:
    differ = 0
    for name, compared in COMPARED.items():
        with torch.device("meta"):
            ours, theirs = compared()
        wrong = sorted(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
        differ += bool(wrong)
        print(
            f"{name}: {len(theirs)} weights, "
            + (f"differ: {', '.join(wrong[:4])} …" if wrong else "the same")
        )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
