"""Qwen-Image, narrow."""

from __future__ import annotations

from tests.families.autoencoders import write_wan
from tests.families.bench import Narrow
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_qwen25vl

WIDTH, HEAD, TEXT = 256, 128, 256
SILU = 1 / 0.596
PROJECTIONS = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"]


def network(tag: str = "fam.qwen_image") -> Weights:
    made = Weights(tag)
    made.linear("img_in", 64, WIDTH)
    made.norm("txt_norm", TEXT)
    made.linear("txt_in", TEXT, WIDTH)
    made.linear("time_text_embed.timestep_embedder.linear_1", 256, WIDTH, gain=1.4)
    made.linear("time_text_embed.timestep_embedder.linear_2", WIDTH, WIDTH, gain=SILU)
    for number in range(2):
        block = f"transformer_blocks.{number}."
        for stream in ("img", "txt"):
            made.linear(f"{block}{stream}_mod.1", WIDTH, 6 * WIDTH, gain=0.7)
            made.linear(f"{block}{stream}_mlp.net.0.proj", WIDTH, 4 * WIDTH)
            made.linear(f"{block}{stream}_mlp.net.2", 4 * WIDTH, WIDTH)
        for part in (
            "to_q",
            "to_k",
            "to_v",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_out.0",
            "to_add_out",
        ):
            made.linear(f"{block}attn.{part}", WIDTH, WIDTH)
        for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            made.norm(f"{block}attn.{part}", HEAD, mean=1.2)
    made.linear("norm_out.linear", WIDTH, 2 * WIDTH, gain=0.5)
    made.linear("proj_out", WIDTH, 64)
    return made


def lora_files(weights: Weights) -> dict[str, Modules]:
    modules = linears(weights, "transformer_blocks.")
    return {
        "kohya": flat("lora_unet_", modules),
        "peft": behind("transformer.", modules),
        "aitoolkit": behind("diffusion_model.", modules),
        "lokr": flat("lycoris_", modules),
    }


NARROW = Narrow(
    name="qwen_image",
    network=network,
    clip_type="qwen_image",
    encoders={"qwen_2.5_vl_7b": write_qwen25vl},
    autoencoder=write_wan,
    loras=lora_files,
)
