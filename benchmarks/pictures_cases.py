"""The pictures that `pictures.py` draws: workflows, and models for them with random values.

The models are narrow (a fraction of the published width, every kind of layer, fewer of them), so that all
families are measured anywhere. They have the names of published files, whose folder may stand in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import tiny_models as tiny
from tests.demo_models import write_demo_models
from tests.families.autoencoders import write_ae
from tests.families.bench import narrow_models, write_lora
from tests.narrow_models import write_qwen3_4b

PAGE = Path(__file__).parents[1] / "examples/lora-tutorial.md"
Graph = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """about: what is drawn. write: makes its models in a folder. source: a graph in API format, or a page.
    changes: NODE.INPUT=VALUE."""

    about: str
    write: Callable[[Path], object]
    source: Graph | Path
    number: int = 1
    changes: tuple[str, ...] = ()


def node(kind: str, **inputs: object) -> Graph:
    return {"class_type": kind, "inputs": inputs}


def drawing(loaders: Graph, clip: tuple[str, int], vae: tuple[str, int], **sampling: object) -> Graph:
    """A workflow over loaders, the last of which gives the model, and a node called "latent"."""
    model = [next(reversed(loaders)), 0]
    prompts = {"positive": "a red fox in the snow", "negative": "blurry"}
    sides = {name: node("CLIPTextEncode", clip=[*clip], text=text) for name, text in prompts.items()}
    linked = {"model": model, **{name: [name, 0] for name in sides}, "latent_image": ["latent", 0]}
    return {
        **loaders,
        **sides,
        "sample": node("KSampler", **linked, seed=1, denoise=1.0, sampler_name="euler", **sampling),
        "decode": node("VAEDecode", samples=["sample", 0], vae=[*vae]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="picture"),
    }


FLUX = "Flux/flux1-dev.safetensors"


def write_flux(root: Path) -> None:
    write_demo_models(root)
    tiny.write_flux(root / "diffusion_models" / FLUX)


def write_sdxl(root: Path) -> None:
    tiny.write_sdxl(root / "checkpoints/sd_xl_base_1.0.safetensors")


def write_z_image(root: Path) -> None:
    narrow = narrow_models()["z_image"]
    narrow.network().write(root / "diffusion_models/z_image_turbo_bf16.safetensors")
    write_qwen3_4b(root / "text_encoders/qwen_3_4b.safetensors")
    (root / "vae").mkdir(parents=True, exist_ok=True)
    (root / "loras").mkdir(parents=True, exist_ok=True)
    write_ae(root / "vae/ae.safetensors")
    write_lora(root / "loras/z_image_style.safetensors", narrow, "peft")


SDXL = drawing(
    {
        "latent": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
        "loader": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
    },
    clip=("loader", 1), vae=("loader", 2), steps=1, cfg=7.0, scheduler="normal",
)  # fmt: skip

Z_IMAGE = drawing(
    {
        "latent": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
        "clip": node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2"),
        "vae": node("VAELoader", vae_name="ae.safetensors"),
        "loader": node("UNETLoader", unet_name="z_image_turbo_bf16.safetensors", weight_dtype="default"),
        "lora": node(
            "LoraLoaderModelOnly", model=["loader", 0], lora_name="z_image_style.safetensors",
            strength_model=1.0,
        ),
        "shifted": node("ModelSamplingAuraFlow", model=["lora", 0], shift=3.0),
    },
    clip=("clip", 0), vae=("vae", 0), steps=2, cfg=1.0, scheduler="simple",
)  # fmt: skip

CASES = {
    "sd15": Case(
        "Stable Diffusion 1.5, 512², LoRA, 4 steps", write_demo_models, PAGE, 1, ("KSampler.steps=4",)
    ),
    "sdxl": Case("SDXL, 1024², one step", write_sdxl, SDXL),
    "flux": Case(
        "Flux.1, 1024², LoRA, 2 steps",
        write_flux,
        PAGE,
        2,
        ("KSampler.steps=2", f"UNETLoader.unet_name={FLUX}"),
    ),  # fmt: skip
    "z_image": Case("Z-Image, 1024², LoRA, 2 steps", write_z_image, Z_IMAGE),
}
