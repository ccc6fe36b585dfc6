"""Z-Image, narrow."""

from __future__ import annotations

from tests.families.autoencoders import write_ae
from tests.families.bench import Narrow
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_qwen3_4b

WIDTH, HEAD, TEXT, INNER, TIME = 384, 128, 64, 1024, 256
SILU = 1 / 0.596


def _block(made: Weights, name: str, modulated: bool) -> None:
    made.linear(f"{name}.attention.qkv", WIDTH, 3 * WIDTH, bias=False)
    made.linear(f"{name}.attention.out", WIDTH, WIDTH, bias=False)
    made.norm(f"{name}.attention.q_norm", HEAD, mean=1.2)
    made.norm(f"{name}.attention.k_norm", HEAD, mean=1.2)
    for part, sizes in (("w1", (WIDTH, INNER)), ("w2", (INNER, WIDTH)), ("w3", (WIDTH, INNER))):
        made.linear(f"{name}.feed_forward.{part}", *sizes, bias=False)
    for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        made.norm(f"{name}.{norm}", WIDTH)
    if modulated:
        made.linear(f"{name}.adaLN_modulation.0", TIME, 4 * WIDTH, gain=0.7)


def network() -> Weights:
    made = Weights("fam.z_image")
    made.linear("x_embedder", 64, WIDTH)
    made.norm("cap_embedder.0", TEXT)
    made.linear("cap_embedder.1", TEXT, WIDTH)
    made.linear("t_embedder.mlp.0", 256, 1024, gain=1.4)
    made.linear("t_embedder.mlp.2", 1024, TIME, gain=SILU)
    made.put("x_pad_token", (1, WIDTH), 0.5)
    made.put("cap_pad_token", (1, WIDTH), 0.5)
    for group, modulated in (("noise_refiner", True), ("context_refiner", False), ("layers", True)):
        for number in range(2):
            _block(made, f"{group}.{number}", modulated)
    made.linear("final_layer.linear", WIDTH, 64)
    made.linear("final_layer.adaLN_modulation.1", TIME, WIDTH, gain=0.5)
    return made


def split(modules: Modules) -> Modules:
    """The fused query, key and value as diffusers' three."""
    found: Modules = []
    for name, (outputs, inputs) in modules:
        stem = name.removesuffix("qkv")
        if stem != name:
            found += [(f"{stem}to_{part}", (outputs // 3, inputs)) for part in "qkv"]
        else:
            whole = f"{name.removesuffix('out')}to_out.0" if name.endswith(".out") else name
            found.append((whole, (outputs, inputs)))
    return found


def lora_files(weights: Weights) -> dict[str, Modules]:
    fused = linears(weights, "attention.", "feed_forward.", "adaLN")
    parts = split(fused)
    return {
        "kohya": flat("lora_unet_", fused),
        "kohya_split": flat("lora_unet_", parts),
        "peft": behind("transformer.", parts),
        "aitoolkit": behind("diffusion_model.", parts),
        "lokr": flat("lycoris_", parts),
    }


NARROW = Narrow(
    name="z_image",
    network=network,
    clip_type="lumina2",
    encoders={"qwen_3_4b": write_qwen3_4b},
    autoencoder=write_ae,
    loras=lora_files,
)
