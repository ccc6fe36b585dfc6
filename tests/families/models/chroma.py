"""Chroma, narrow; its depth is the real one, on which the approximator's vectors depend."""

from __future__ import annotations

from tests.families.autoencoders import write_ae
from tests.families.bench import Narrow, flux_shift
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_t5

WIDTH, TEXT, HIDDEN = 128, 64, 64
DOUBLE, SINGLE = 19, 38


def _norms(made: Weights, name: str) -> None:
    made.put(f"{name}query_norm.scale", (128,), 0.1, 1.2)
    made.put(f"{name}key_norm.scale", (128,), 0.1, 1.2)


def network() -> Weights:
    made = Weights("fam.chroma")
    made.linear("img_in", 64, WIDTH)
    made.linear("txt_in", TEXT, WIDTH)
    small = "distilled_guidance_layer."
    made.linear(f"{small}in_proj", 64, HIDDEN)
    made.linear(f"{small}out_proj", HIDDEN, WIDTH, gain=0.7)
    for number in range(5):
        made.linear(f"{small}layers.{number}.in_layer", HIDDEN, HIDDEN)
        made.linear(f"{small}layers.{number}.out_layer", HIDDEN, HIDDEN, gain=0.7)
        made.put(f"{small}norms.{number}.scale", (HIDDEN,), 0.1, 1.0)
    for number in range(DOUBLE):
        for stream in ("img", "txt"):
            name = f"double_blocks.{number}.{stream}_"
            made.linear(f"{name}attn.qkv", WIDTH, 3 * WIDTH)
            _norms(made, f"{name}attn.norm.")
            made.linear(f"{name}attn.proj", WIDTH, WIDTH)
            made.linear(f"{name}mlp.0", WIDTH, 4 * WIDTH)
            made.linear(f"{name}mlp.2", 4 * WIDTH, WIDTH)
    for number in range(SINGLE):
        name = f"single_blocks.{number}."
        made.linear(f"{name}linear1", WIDTH, 7 * WIDTH)
        made.linear(f"{name}linear2", 5 * WIDTH, WIDTH)
        _norms(made, f"{name}norm.")
    made.linear("final_layer.linear", WIDTH, 64)
    return made


def lora_files(weights: Weights) -> dict[str, Modules]:
    fused = linears(weights, "_blocks.")
    parts: Modules = []
    for name, (outputs, inputs) in fused:
        group, number, rest = name.split(".", 2)
        if group == "single_blocks":
            block = f"single_transformer_blocks.{number}."
            if rest == "linear2":
                parts.append((f"{block}proj_out", (outputs, inputs)))
                continue
            parts += [(f"{block}attn.to_{part}", (inputs, inputs)) for part in "qkv"]
            parts.append((f"{block}proj_mlp", (outputs - 3 * inputs, inputs)))
            continue
        block, picture = f"transformer_blocks.{number}.", rest.startswith("img")
        feed = "ff" if picture else "ff_context"
        module = {
            "attn.proj": f"attn.{'to_out.0' if picture else 'to_add_out'}",
            "mlp.0": f"{feed}.net.0.proj",
            "mlp.2": f"{feed}.net.2",
        }.get(rest[4:])
        if module is not None:
            parts.append((block + module, (outputs, inputs)))
            continue
        split = "to_{}" if picture else "add_{}_proj"
        parts += [(f"{block}attn.{split.format(part)}", (outputs // 3, inputs)) for part in "qkv"]
    return {
        "kohya": flat("lora_unet_", fused),
        "peft": behind("transformer.", parts),
        "aitoolkit": behind("diffusion_model.", fused),
    }


NARROW = Narrow(
    name="chroma",
    network=network,
    clip_type="chroma",
    encoders={"t5xxl": write_t5},
    autoencoder=write_ae,
    loras=lora_files,
    shift=flux_shift,
)
