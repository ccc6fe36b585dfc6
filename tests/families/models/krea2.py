"""Krea 2, narrow."""

from __future__ import annotations

from tests.families.autoencoders import write_wan
from tests.families.bench import Narrow, flux_shift
from tests.families.figure_nodes import references
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_qwen3vl_4b

WIDTH, HEADS, KEY_HEADS, INNER = 256, 2, 1, 768
TEXT, TEXT_HEADS, TEXT_INNER, LAYERS = 64, 2, 256, 12
LATENT = 64
SILU = 1 / 0.596

RENAMED = (
    ("attn.wq", "attn.to_q"),
    ("attn.wk", "attn.to_k"),
    ("attn.wv", "attn.to_v"),
    ("attn.gate", "attn.to_gate"),
    ("attn.wo", "attn.to_out.0"),
    ("mlp.", "ff."),
    ("txtfusion.", "text_fusion."),
)


def _block(made: Weights, name: str, width: int, heads: int, key_heads: int, inner: int) -> None:
    head = width // heads
    for norm in ("prenorm", "postnorm"):
        made.put(f"{name}.{norm}.scale", (width,), 0.1)
    for part, outputs in (("wq", width), ("wk", key_heads * head), ("wv", key_heads * head), ("gate", width)):
        made.linear(f"{name}.attn.{part}", width, outputs, bias=False)
    for norm in ("qnorm", "knorm"):
        made.put(f"{name}.attn.qknorm.{norm}.scale", (head,), 0.1, 0.2)
    made.linear(f"{name}.attn.wo", width, width, gain=1.5, bias=False)
    for part, sizes in (("gate", (width, inner)), ("up", (width, inner)), ("down", (inner, width))):
        made.linear(f"{name}.mlp.{part}", *sizes, bias=False)


def network() -> Weights:
    made = Weights("fam.krea2")
    made.linear("first", LATENT, WIDTH)
    for number in range(2):
        made.put(f"blocks.{number}.mod.lin", (6 * WIDTH,), 0.3)
        _block(made, f"blocks.{number}", WIDTH, HEADS, KEY_HEADS, INNER)
    made.linear("tmlp.0", 256, WIDTH, gain=1.4)
    made.linear("tmlp.2", WIDTH, WIDTH, gain=SILU)
    for group in ("layerwise_blocks", "refiner_blocks"):
        for number in range(2):
            _block(made, f"txtfusion.{group}.{number}", TEXT, TEXT_HEADS, TEXT_HEADS, TEXT_INNER)
    made.linear("txtfusion.projector", LAYERS, 1, bias=False)
    made.put("txtmlp.0.scale", (TEXT,), 0.1)
    made.linear("txtmlp.1", TEXT, WIDTH)
    made.linear("txtmlp.3", WIDTH, WIDTH, gain=SILU)
    made.put("last.norm.scale", (WIDTH,), 0.1)
    made.linear("last.linear", WIDTH, LATENT)
    made.put("last.modulation.lin", (2, WIDTH), 0.3)
    made.linear("tproj.1", WIDTH, 6 * WIDTH, gain=0.7)
    return made


def in_diffusers(modules: Modules) -> Modules:
    found: Modules = []
    for name, shape in modules:
        whole = f"transformer_{name}" if name.startswith("blocks.") else name
        for native, module in RENAMED:
            whole = whole.replace(native, module)
        found.append((whole, shape))
    return found


def lora_files(weights: Weights) -> dict[str, Modules]:
    modules = linears(weights, "blocks.")
    renamed = in_diffusers(modules)
    return {
        "kohya": flat("lora_unet_", modules),
        "peft": behind("transformer.", renamed),
        "aitoolkit": behind("diffusion_model.", modules),
        "lokr": flat("lycoris_", renamed),
    }


NARROW = Narrow(
    name="krea2",
    network=network,
    clip_type="krea2",
    encoders={"qwen3vl_4b": write_qwen3vl_4b},
    autoencoder=write_wan,
    loras=lora_files,
    empty_latent="EmptyLatentImage",
    shift=flux_shift,
    edit=references("krea2_edit"),
)
