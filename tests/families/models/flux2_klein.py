"""Flux.2 klein, narrow."""

from __future__ import annotations

from tests.families.autoencoders import write_flux2_vae
from tests.families.bench import Narrow, flux_shift
from tests.families.figure_nodes import references
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_qwen3_4b

WIDTH, HEAD, TEXT, CHANNELS = 256, 128, 192, 128
INNER = 3 * WIDTH
SILU = 1 / 0.596


def _head_norms(made: Weights, name: str) -> None:
    for part in ("query_norm", "key_norm"):
        made.put(f"{name}.{part}.scale", (HEAD,), 0.1, 1.2)


def network(tag: str = "fam.flux2_klein", guidance: bool = False) -> Weights:
    made = Weights(tag)

    def linear(name: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        made.linear(name, inputs, outputs, gain, bias=False)

    linear("img_in", CHANNELS, WIDTH)
    linear("txt_in", TEXT, WIDTH, 0.5)
    for name in ("time_in", "guidance_in") if guidance else ("time_in",):
        linear(f"{name}.in_layer", 256, WIDTH, 1.4)
        linear(f"{name}.out_layer", WIDTH, WIDTH, 0.8 * SILU)
    for name, sets in (
        ("double_stream_modulation_img", 6),
        ("double_stream_modulation_txt", 6),
        ("single_stream_modulation", 3),
    ):
        linear(f"{name}.lin", WIDTH, sets * WIDTH, 0.7)
    for block in range(2):
        for stream in ("img", "txt"):
            start = f"double_blocks.{block}.{stream}_"
            linear(f"{start}attn.qkv", WIDTH, 3 * WIDTH)
            _head_norms(made, f"{start}attn.norm")
            linear(f"{start}attn.proj", WIDTH, WIDTH)
            linear(f"{start}mlp.0", WIDTH, 2 * INNER)
            linear(f"{start}mlp.2", INNER, WIDTH)
    for block in range(2):
        start = f"single_blocks.{block}."
        linear(f"{start}linear1", WIDTH, 3 * WIDTH + 2 * INNER)
        linear(f"{start}linear2", WIDTH + INNER, WIDTH)
        _head_norms(made, f"{start}norm")
    linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH, 0.5)
    linear("final_layer.linear", WIDTH, CHANNELS)
    return made


_ENDINGS = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
    "linear1": ("attn.to_qkv_mlp_proj",),
    "linear2": ("attn.to_out",),
}


def diffusers(modules: Modules) -> Modules:
    """The blocks' layers by diffusers' names, query, key and value of double blocks apart."""
    found: Modules = []
    for name, (outputs, inputs) in modules:
        kind, block, ending = name.split(".", 2)
        start = f"{kind.removeprefix('double_').replace('blocks', 'transformer_blocks')}.{block}."
        parts = _ENDINGS[ending]
        found += [(start + part, (outputs // len(parts), inputs)) for part in parts]
    return found


def lora_files(weights: Weights) -> dict[str, Modules]:
    fused = linears(weights, "_blocks.")
    parts = diffusers(fused)
    return {
        "kohya": flat("lora_unet_", fused),
        "peft": behind("transformer.", parts),
        "aitoolkit": behind("diffusion_model.", fused),
        "lokr": flat("lycoris_", parts),
    }


NARROW = Narrow(
    name="flux2_klein",
    network=network,
    clip_type="flux2",
    encoders={"qwen_3_4b": write_qwen3_4b},
    autoencoder=write_flux2_vae,
    loras=lora_files,
    empty_latent="EmptyFlux2LatentImage",
    shift=flux_shift,
    edit=references("flux2_klein_edit"),
)
