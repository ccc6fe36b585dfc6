"""Flux.1 Kontext, narrow, and what its kin of other inputs share with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.families.autoencoders import write_ae
from tests.families.bench import Api, Narrow, api_node, flux_shift
from tests.families.figure_nodes import with_references, zeros
from tests.families.loras import behind, linears
from tests.narrow_models import Weights, write_clip_l, write_t5

WIDTH, HEAD, TEXT, POOLED = 256, 128, 64, 128
INNER = 4 * WIDTH
SILU = 1 / 0.596


def _head_norms(made: Weights, name: str) -> None:
    for part in ("query_norm", "key_norm"):
        made.put(f"{name}.{part}.scale", (HEAD,), 0.1, 1.2)


def network(kind: str, channels: int) -> Weights:
    """channels: of a token, four of a latent pixel."""
    made = Weights(f"fam.flux1_{kind}")
    made.linear("img_in", channels, WIDTH)
    made.linear("txt_in", TEXT, WIDTH, 0.5)
    for name, inputs in (("time_in", 256), ("guidance_in", 256), ("vector_in", POOLED)):
        made.linear(f"{name}.in_layer", inputs, WIDTH, 1.2)
        made.linear(f"{name}.out_layer", WIDTH, WIDTH, 0.7 * SILU)
    for block in range(2):
        for stream in ("img", "txt"):
            start = f"double_blocks.{block}.{stream}_"
            made.linear(f"{start}mod.lin", WIDTH, 6 * WIDTH, 0.5)
            made.linear(f"{start}attn.qkv", WIDTH, 3 * WIDTH)
            _head_norms(made, f"{start}attn.norm")
            made.linear(f"{start}attn.proj", WIDTH, WIDTH)
            made.linear(f"{start}mlp.0", WIDTH, INNER)
            made.linear(f"{start}mlp.2", INNER, WIDTH)
    for block in range(2):
        start = f"single_blocks.{block}."
        made.linear(f"{start}modulation.lin", WIDTH, 3 * WIDTH, 0.5)
        made.linear(f"{start}linear1", WIDTH, 3 * WIDTH + INNER)
        made.linear(f"{start}linear2", WIDTH + INNER, WIDTH)
        _head_norms(made, f"{start}norm")
    made.linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH, 0.5)
    made.linear("final_layer.linear", WIDTH, 64)
    return made


def guided(nodes: Api, guidance: float) -> Api:
    """The encoded prompt, told its guidance, in the place of itself."""
    nodes["words"] = nodes["prompt"]
    nodes["prompt"] = api_node("FluxGuidance", conditioning=["words", 0], guidance=guidance)
    return nodes


def _edit(name: str, case: Api) -> tuple[Api, Api]:
    """Both sides see the references. The case of odd sizes has a reference of its own."""
    count = case["refs"]
    keys = [f"ref|{number}" for number in range(count)] if isinstance(count, int) else [f"{name}|ref"]
    nodes: Api = {"latent": zeros(case["latent_shape"])}
    given: Api = {"latent_image": ["latent", 0]}
    for side, text in (("positive", case["prompt"]), ("negative", "blurry")):
        nodes[f"{side} words"] = api_node("CLIPTextEncode", clip=["clip", 0], text=text)
        nodes[side] = api_node("FluxGuidance", conditioning=[f"{side} words", 0], guidance=2.5)
        given[side] = with_references(nodes, side, "flux1_kontext_edit", keys, case["method"])
    return nodes, given


def narrow(kind: str, channels: int) -> Narrow:
    """Without the workflows of its edits."""
    return Narrow(
        name=f"flux1_{kind}",
        network=partial(network, kind, channels),
        clip_type="flux",
        encoders={"clip_l": write_clip_l, "t5xxl": write_t5},
        autoencoder=write_ae,
        loras=lambda weights: {"peft": behind("diffusion_model.", linears(weights, "_blocks."))},
        shift=flux_shift,
    )


NARROW = replace(narrow("kontext", 64), edit=_edit)
