"""Stable Diffusion 3.5 with two CLIP encoders, narrow."""

from __future__ import annotations

from tests.families.autoencoders import convolution, write_sd3
from tests.families.bench import Narrow
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_clip_g, write_clip_l

DEPTH, SIDE, POOLED = 2, 24, 256
WIDTH = 64 * DEPTH
SILU = 1 / 0.596


def network(tag: str = "fam.sd35", context: int = 4096) -> Weights:
    """The first block has a second attention over the picture."""
    made = Weights(tag)
    made.put("pos_embed", (1, SIDE * SIDE, WIDTH), 0.5)
    convolution(made, "x_embedder.proj", 16, WIDTH, 2)
    made.linear("t_embedder.mlp.0", 256, WIDTH, gain=1.4)
    made.linear("t_embedder.mlp.2", WIDTH, WIDTH, gain=SILU)
    made.linear("y_embedder.mlp.0", POOLED, WIDTH)
    made.linear("y_embedder.mlp.2", WIDTH, WIDTH, gain=SILU)
    made.linear("context_embedder", context, WIDTH, gain=5.0)
    for number in range(DEPTH):
        for stream in ("context_block", "x_block"):
            block = f"joint_blocks.{number}.{stream}."
            last = stream == "context_block" and number == DEPTH - 1
            dual = stream == "x_block" and number == 0
            for attention in ("attn", "attn2") if dual else ("attn",):
                made.linear(f"{block}{attention}.qkv", WIDTH, 3 * WIDTH)
                made.norm(f"{block}{attention}.ln_q", 64, mean=1.2)
                made.norm(f"{block}{attention}.ln_k", 64, mean=1.2)
                if not last:
                    made.linear(f"{block}{attention}.proj", WIDTH, WIDTH)
            if not last:
                made.linear(f"{block}mlp.fc1", WIDTH, 4 * WIDTH)
                made.linear(f"{block}mlp.fc2", 4 * WIDTH, WIDTH)
            vectors = 2 if last else 9 if dual else 6
            made.linear(f"{block}adaLN_modulation.1", WIDTH, vectors * WIDTH, gain=0.7)
    made.linear("final_layer.linear", WIDTH, 64)
    made.linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH, gain=0.5)
    return made


def lora_files(weights: Weights) -> dict[str, Modules]:
    fused = linears(weights, "joint_blocks.")
    parts: Modules = []
    for name, (outputs, inputs) in fused:
        _, number, stream, rest = name.split(".", 3)
        picture, block = stream == "x_block", f"transformer_blocks.{number}."
        feed = "ff" if picture else "ff_context"
        if rest == "attn.qkv":
            split = "to_{}" if picture else "add_{}_proj"
            parts += [(f"{block}attn.{split.format(part)}", (outputs // 3, inputs)) for part in "qkv"]
        elif rest == "attn.proj":
            parts.append((f"{block}attn.{'to_out.0' if picture else 'to_add_out'}", (outputs, inputs)))
        elif rest == "mlp.fc1":
            parts.append((f"{block}{feed}.net.0.proj", (outputs, inputs)))
        elif rest == "mlp.fc2":
            parts.append((f"{block}{feed}.net.2", (outputs, inputs)))
    return {
        "kohya": flat("lora_unet_", fused),
        "peft": behind("transformer.", parts),
        "aitoolkit": behind("diffusion_model.", fused),
    }


NARROW = Narrow(
    name="sd35",
    network=network,
    clip_type="sd3",
    encoders={"clip_l": write_clip_l, "clip_g": write_clip_g},
    autoencoder=write_sd3,
    loras=lora_files,
)
