"""What a LoRA is for, by its names and shapes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.errors import InputError
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.lora.origin import base_of, made_for


def _base(
    path: Path, modules: Iterable[str], width: int, metadata: dict[str, str] | None = None
) -> str | None:
    tensors = {f"{name}.lora_A.weight": torch.zeros(1, width) for name in modules}
    tensors |= {f"{name}.lora_B.weight": torch.zeros(width, 1) for name in modules}
    save_file(tensors, path, metadata)
    return base_of(read_lora(path))


ATTENTION = ("attn.to_q", "attn.to_k", "attn.add_q_proj", "attn.to_add_out")


@pytest.mark.parametrize("prefix", ["transformer.", "", "base_model.model."])
@pytest.mark.parametrize(
    ("width", "blocks", "family"),
    [(3072, (0, 18), "flux"), (3072, (0, 59), "qwen_image"), (1536, (0, 23), "sd3"), (2432, (0, 37), "sd3")],
)
def test_joint_attention_alone_is_told_by_its_width(
    prefix: str, width: int, blocks: tuple[int, ...], family: str, tmp_path: Path
) -> None:
    modules = [f"{prefix}transformer_blocks.{block}.{name}" for block in blocks for name in ATTENTION]
    assert _base(tmp_path / "x.safetensors", modules, width) == family


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("diffusion_model.blocks.0.self_attn.q_proj", "anima"),
        ("lora_unet_blocks_0_mlp_layer1", "anima"),
        ("diffusion_model.llm_adapter.blocks.0.cross_attn.k_proj", "anima"),
        ("diffusion_model.blocks.0.self_attn.q", "wan"),
        ("diffusion_model.blocks.0.ffn.0", "wan"),
    ],
)
def test_models_that_are_not_run_are_told_apart(path: str, family: str, tmp_path: Path) -> None:
    assert _base(tmp_path / "x.safetensors", [path], 2048) == family


def test_flux_by_its_image_attention_alone(tmp_path: Path) -> None:
    modules = ["transformer.transformer_blocks.0.attn.to_q"]
    assert _base(tmp_path / "x.safetensors", modules, 3072) == "flux"


@pytest.mark.parametrize(
    ("path", "width", "family"),
    [
        ("transformer.transformer_blocks.1.norm1.linear", 3072, "flux"),
        ("transformer.layers.1.norm1.linear", 1024, "lumina2"),
        ("diffusion_model.noise_refiner.1.adaLN_modulation.1", 1024, "lumina2"),
    ],
)
def test_modulation_alone_is_told_by_where_it_stands(
    path: str, width: int, family: str, tmp_path: Path
) -> None:
    assert _base(tmp_path / "x.safetensors", [path], width) == family


def test_what_the_metadata_says_counts_where_widths_are_silent(tmp_path: Path) -> None:
    modules = ["transformer_blocks.0.attn1.to_q"]
    said = {"modelspec.architecture": "wan2.1"}
    assert _base(tmp_path / "x.safetensors", modules, 1152, said) == "wan"


def test_more_than_joint_attention_says_more(tmp_path: Path) -> None:
    modules = [f"transformer.transformer_blocks.0.{name}" for name in ATTENTION]
    modules += ["transformer.transformer_blocks.0.img_mlp.net.2"]
    assert _base(tmp_path / "x.safetensors", modules, 3072) == "qwen_image"


@pytest.mark.parametrize(
    ("name", "width", "family"),
    [
        ("double_blocks.0.img_mlp.2", 12288, "flux"),
        ("double_blocks.0.img_mlp.2", 9216, "flux2"),
        ("single_blocks.0.linear2", 15360, "flux"),
        ("single_blocks.0.linear2", 12288, "flux2"),
        ("single_blocks.0.linear1", 6144, "flux2"),
        ("double_blocks.0.txt_attn.qkv", 4096, "flux2"),
    ],
)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_flux1_and_flux2_share_names_and_differ_in_width(
    name: str, width: int, family: str, prefix: str, tmp_path: Path
) -> None:
    module = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
    assert _base(tmp_path / "x.safetensors", [module], width) == family


@pytest.mark.parametrize(
    ("width", "family", "title"),
    [
        (3072, "flux2", "Flux.2 klein 4B"),
        (4096, "flux2", "Flux.2 klein 9B"),
        (6144, "flux2", "Flux.2 dev"),
        (64, "flux2", "Flux.2"),
        (1536, "sd3", "Stable Diffusion 3 medium"),
        (3072, "flux", "Flux.1"),
    ],
)
def test_the_size_of_a_model_is_named(width: int, family: str, title: str, tmp_path: Path) -> None:
    modules = ["double_blocks.0.img_attn.proj", "single_blocks.0.linear2"]
    _base(tmp_path / "x.safetensors", modules, width)
    assert made_for(read_lora(tmp_path / "x.safetensors"), family) == title


def test_a_lora_of_another_size_is_told_by_name(tmp_path: Path) -> None:
    modules = [f"diffusion_model.double_blocks.{block}.img_attn.proj" for block in range(2)]
    assert _base(tmp_path / "x.safetensors", modules, 6144) == "flux2"
    names = {name.removeprefix("diffusion_model.") + ".weight": (3072, 3072) for name in modules}
    with pytest.raises(InputError, match=r"it was made for Flux\.2 dev, this is Flux\.2 klein 4B"):
        load_lora(read_lora(tmp_path / "x.safetensors"), {"model": Component("flux2", names)})
