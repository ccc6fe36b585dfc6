"""Anima, narrow."""

from __future__ import annotations

from tests.families.autoencoders import write_wan
from tests.families.bench import Narrow
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_qwen3_06b

WIDTH, HEAD, TEXT, RANK = 256, 128, 64, 32
SILU = 1 / 0.596


def _attention(made: Weights, name: str, width: int, context: int, head: int, last: str) -> None:
    made.linear(f"{name}.q_proj", width, width, bias=False)
    made.norm(f"{name}.q_norm", head, mean=1.2)
    made.linear(f"{name}.k_proj", context, width, bias=False)
    made.norm(f"{name}.k_norm", head, mean=1.2)
    made.linear(f"{name}.v_proj", context, width, bias=False)
    made.linear(f"{name}.{last}", width, width, bias=False)


def _adapter(made: Weights) -> None:
    made.put("llm_adapter.embed.weight", (32128, TEXT), 0.8)
    for number in range(2):
        block = f"llm_adapter.blocks.{number}"
        for part in ("self_attn", "cross_attn"):
            made.norm(f"{block}.norm_{part}", TEXT)
            _attention(made, f"{block}.{part}", TEXT, TEXT, TEXT, "o_proj")
        made.norm(f"{block}.norm_mlp", TEXT)
        made.linear(f"{block}.mlp.0", TEXT, 4 * TEXT)
        made.linear(f"{block}.mlp.2", 4 * TEXT, TEXT)
    made.linear("llm_adapter.out_proj", TEXT, TEXT)
    made.norm("llm_adapter.norm", TEXT)


def network() -> Weights:
    made = Weights("fam.anima")
    made.linear("x_embedder.proj.1", 68, WIDTH, bias=False)
    made.linear("t_embedder.1.linear_1", WIDTH, WIDTH, gain=1.4, bias=False)
    made.linear("t_embedder.1.linear_2", WIDTH, 3 * WIDTH, gain=0.8 * SILU, bias=False)
    made.norm("t_embedding_norm", WIDTH)
    for number in range(2):
        block = f"blocks.{number}"
        _attention(made, f"{block}.self_attn", WIDTH, WIDTH, HEAD, "output_proj")
        _attention(made, f"{block}.cross_attn", WIDTH, TEXT, HEAD, "output_proj")
        made.linear(f"{block}.mlp.layer1", WIDTH, 4 * WIDTH, bias=False)
        made.linear(f"{block}.mlp.layer2", 4 * WIDTH, WIDTH, gain=1.4, bias=False)
        for part in ("self_attn", "cross_attn", "mlp"):
            made.linear(f"{block}.adaln_modulation_{part}.1", WIDTH, RANK, gain=SILU, bias=False)
            made.linear(f"{block}.adaln_modulation_{part}.2", RANK, 3 * WIDTH, gain=0.5, bias=False)
    made.linear("final_layer.linear", WIDTH, 64, bias=False)
    made.linear("final_layer.adaln_modulation.1", WIDTH, RANK, gain=SILU, bias=False)
    made.linear("final_layer.adaln_modulation.2", RANK, 2 * WIDTH, gain=0.5, bias=False)
    _adapter(made)
    return made


def lora_files(weights: Weights) -> dict[str, Modules]:
    modules = [one for one in linears(weights, "blocks.") if not one[0].startswith("llm_adapter.")]
    return {
        "kohya": flat("lora_unet_", modules),
        "peft": behind("transformer.", modules),
        "aitoolkit": behind("diffusion_model.", modules),
    }


NARROW = Narrow(
    name="anima",
    network=network,
    clip_type="stable_diffusion",
    encoders={"qwen_3_06b_base": write_qwen3_06b},
    autoencoder=write_wan,
    loras=lora_files,
    empty_latent="EmptyLatentImage",
)
