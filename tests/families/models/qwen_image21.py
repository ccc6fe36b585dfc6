"""Qwen-Image 2.1, narrow."""

from __future__ import annotations

from collections.abc import Iterator

from tests.families.autoencoders import write_qwen_image21
from tests.families.bench import Api, Narrow, api_node
from tests.families.figure_nodes import zeros
from tests.families.loras import Modules, behind, flat, linears
from tests.narrow_models import Weights, write_qwen3vl_8b

WIDTH, HEAD, TEXT, LATENT = 256, 128, 64, 64
SILU = 1 / 0.596


def network() -> Weights:
    made = Weights("fam.qwen_image21")
    made.linear("img_in", LATENT, WIDTH, bias=False)
    made.norm("txt_in.text_norm", TEXT, mean=0.0)
    made.linear("txt_in.in_layer", TEXT, WIDTH, bias=False)
    made.linear("txt_in.out_layer", WIDTH, WIDTH, bias=False)
    time = "time_text_embed.timestep_embedder"
    made.linear(f"{time}.linear_1", 256, WIDTH, gain=1.4, bias=False)
    made.linear(f"{time}.linear_2", WIDTH, WIDTH, gain=SILU, bias=False)
    made.linear("modulation.1", WIDTH, 4 * WIDTH, gain=0.7, bias=False)
    for number in range(2):
        block = f"transformer_blocks.{number}"
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            made.linear(f"{block}.attn.{part}", WIDTH, WIDTH, bias=False)
        made.norm(f"{block}.attn.norm_q", HEAD, mean=1.2)
        made.norm(f"{block}.attn.norm_k", HEAD, mean=1.2)
        made.linear(f"{block}.img_mlp.gate_up", WIDTH, 6 * WIDTH, bias=False)
        made.linear(f"{block}.img_mlp.out", 3 * WIDTH, WIDTH, bias=False)
    made.linear("norm_out.linear", WIDTH, WIDTH, gain=0.5, bias=False)
    made.linear("proj_out", WIDTH, LATENT, bias=False)
    return made


def lora_files(weights: Weights) -> dict[str, Modules]:
    modules = linears(weights, "transformer_blocks.")
    return {
        "kohya": flat("lora_unet_", modules),
        "peft": behind("transformer.", modules),
        "aitoolkit": behind("diffusion_model.", modules),
    }


def newer_names(weight: str) -> Iterator[str]:
    """The two halves of the fused layer, as diffusers calls them (ComfyUI 0.37)."""
    path = weight.removesuffix("gate_up.weight")
    for name in (path + "gate_layer", path + "proj") if path != weight else ():
        yield from (
            f"diffusion_model.{name}",
            f"transformer.{name}",
            name,
            "lycoris_" + name.replace(".", "_"),
        )


def edit(name: str, case: Api) -> tuple[Api, Api]:
    figures = "qwen_image21_edit"
    pictures = {
        picture: api_node("FigurePicture", figures=figures, name=picture) for picture in case["images"]
    }
    connected = {f"images.image_{number}": [name, 0] for number, name in enumerate(pictures, 1)}
    if case.get("vae", "vae") is not None:
        connected["vae"] = ["vae", 0]
    nodes: Api = {
        **pictures,
        "latent": zeros(case["latent_shape"]),
        "prompt": api_node(
            "TextEncodeQwenImage21",
            clip=["clip", 0],
            prompt=case["prompt"],
            negative_prompt="",
            resolution=case.get("resolution", 0),
            **connected,
        ),
    }
    if name == "one":  # with two prompts
        nodes["kept"] = api_node("QwenImage21Cache", model=["unet", 0], device="auto", dtype="default")
    model = ["kept", 0] if "kept" in nodes else ["unet", 0]
    given = {"positive": ["prompt", 0], "negative": ["prompt", 1], "latent_image": ["latent", 0]}
    return nodes, {"model": model, **given}


NARROW = Narrow(
    name="qwen_image21",
    network=network,
    clip_type="qwen_image",
    encoders={"qwen3vl_8b": write_qwen3vl_8b},
    autoencoder=write_qwen_image21,
    loras=lora_files,
    newer_names=newer_names,
    empty_latent="EmptyFlux2LatentImage",
    edit=edit,
)
