"""Lumina 2, narrow."""

from __future__ import annotations

from tests.families.autoencoders import write_ae
from tests.families.bench import Narrow
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_gemma2

WIDTH, HEAD, TEXT, INNER = 288, 96, 64, 1280
SILU = 1 / 0.596


def network() -> Weights:
    """Three heads for queries, one for keys and values."""
    made = Weights("fam.lumina2")
    made.linear("x_embedder", 64, WIDTH)
    made.norm("cap_embedder.0", TEXT)
    made.linear("cap_embedder.1", TEXT, WIDTH)
    made.linear("t_embedder.mlp.0", 256, WIDTH, gain=1.4)
    made.linear("t_embedder.mlp.2", WIDTH, WIDTH, gain=SILU)
    for group, modulated in (("noise_refiner", True), ("context_refiner", False), ("layers", True)):
        for number in range(2):
            name = f"{group}.{number}."
            made.linear(f"{name}attention.qkv", WIDTH, 5 * HEAD, bias=False)
            made.linear(f"{name}attention.out", WIDTH, WIDTH, bias=False)
            made.norm(f"{name}attention.q_norm", HEAD, mean=1.2)
            made.norm(f"{name}attention.k_norm", HEAD, mean=1.2)
            for part, sizes in (("w1", (WIDTH, INNER)), ("w2", (INNER, WIDTH)), ("w3", (WIDTH, INNER))):
                made.linear(f"{name}feed_forward.{part}", *sizes, bias=False)
            for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                made.norm(name + norm, WIDTH)
            if modulated:
                made.linear(f"{name}adaLN_modulation.1", WIDTH, 4 * WIDTH, gain=0.7)
    made.linear("final_layer.linear", WIDTH, 64)
    made.linear("final_layer.adaLN_modulation.1", WIDTH, WIDTH, gain=0.5)
    return made


def lora_files(weights: Weights) -> dict[str, Modules]:
    fused = linears(weights, "attention.", "feed_forward.", "adaLN")
    return {
        "kohya": flat("lora_unet_", fused),
        "peft": behind("transformer.", fused),
        "aitoolkit": behind("diffusion_model.", fused),
    }


NARROW = Narrow(
    name="lumina2",
    network=network,
    clip_type="lumina2",
    encoders={"gemma_2_2b": write_gemma2},
    autoencoder=write_ae,
    loras=lora_files,
)
