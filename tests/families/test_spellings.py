"""Ways to write LoRA files and networks beyond those that figures were measured of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraloom.errors import LoraloomError
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.load import Compat, load_lora
from loraloom.lora.origin import base_of
from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, SampleContext
from tests.families import loras
from tests.families.models import anima, krea2, qwen_image21

GATE_UP, HALVES = ".img_mlp.gate_up", (".img_mlp.gate_layer", ".img_mlp.proj")


def deltas(model: DiffusionModel, path: Path, compat: Compat = "trainer") -> dict[str, Tensor]:
    """Native weight → what a LoRA file adds to it."""
    component = Component(model.family.name, model.weights.shapes, model.lora_aliases())
    lora = load_lora(read_lora(path), {"model": component}, compat=compat)
    found: dict[str, Tensor] = {}
    for name, patches in lora.model.patches().items():
        change = torch.zeros(model.weights.shapes[name])
        for patch in patches:
            begin, end = patch.rows or (0, len(change))
            change[begin:end] = patch.apply(change[begin:end].clone(), 1.0)
        found[name] = change
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spellings")


@pytest.mark.parametrize("rename", [lambda modules: modules, krea2.in_diffusers], ids=["native", "diffusers"])
def test_peft_files_of_krea2_that_comfyui_does_not_place(
    folder: Path, rename: Callable[[loras.Modules], loras.Modules]
) -> None:
    weights = krea2.network()
    model = open_diffusion_model(weights.write(folder / "krea2.safetensors"))
    modules = loras.linears(weights, "blocks.")
    wrapped = loras.behind("base_model.model.", rename(modules))
    path = loras.write(folder / "lora.safetensors", "krea2", "peft", wrapped)
    assert deltas(model, path).keys() == {f"{name}.weight" for name, _ in modules}
    with pytest.raises(LoraloomError, match="comfyui"):
        deltas(model, path, "comfyui")


def split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two halves of the fused layers' rows as layers of their own, as diffusers has them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, fused, tail = name.partition(GATE_UP)
        parts = [tensor, tensor] if ".lora_A" in tail else list(tensor.chunk(2)) if fused else [tensor]
        names = [stem + half + tail for half in HALVES] if fused else [name]
        found |= {one: part.clone() for one, part in zip(names, parts, strict=True)}
    return found


@pytest.mark.parametrize("compat", ["trainer", "comfyui"])
def test_fused_and_split_layers_of_qwen_image21(folder: Path, compat: Compat) -> None:
    weights = qwen_image21.network()
    values = {name: weights.value(name) for name in weights.known}
    modules = loras.behind("diffusion_model.", loras.linears(weights, "img_mlp."))
    fused = loras.write(folder / "fused.safetensors", "qwen_image21", "peft", modules)
    apart = folder / "apart.safetensors"
    save_file(split(load_file(fused)), apart)
    save_file(split(values), folder / "split.safetensors")
    native = open_diffusion_model(weights.write(folder / "native.safetensors"))
    other = open_diffusion_model(folder / "split.safetensors")
    assert other.family is native.family and other.weights.shapes == native.weights.shapes
    expected = deltas(native, fused, compat)
    assert {name.split(".")[-2] for name in expected} == {"gate_up", "out"}
    for model, path in ((native, apart), (other, fused), (other, apart)):
        found = deltas(model, path, compat)
        assert found.keys() == expected.keys()
        for name, change in expected.items():
            torch.testing.assert_close(found[name], change)


def test_both_layouts_of_qwen_image21_are_the_same_network(folder: Path) -> None:
    weights = qwen_image21.network()
    save_file(split({name: weights.value(name) for name in weights.known}), folder / "b.safetensors")
    x, cond = torch.randn(1, 64, 3, 4), Cond(torch.randn(1, 5, qwen_image21.TEXT))
    outputs: list[Tensor] = []
    for path in (weights.write(folder / "a.safetensors"), folder / "b.safetensors"):
        network = Memory("cpu", "fp32").network(open_diffusion_model(path))
        inputs = Inputs.joined([network.inputs(cond, SampleContext(x, x))])
        outputs.append(network(x, torch.full((1,), 0.5), inputs))
    assert torch.equal(*outputs)


def test_diffusers_names_of_both_parts_of_anima(folder: Path) -> None:
    weights = anima.network()
    model = open_diffusion_model(weights.write(folder / "anima.safetensors"))
    modules: loras.Modules = [
        ("transformer.transformer_blocks.0.attn1.to_q", (256, 256)),
        ("transformer.transformer_blocks.0.norm2.linear_1", (32, 256)),
        ("text_conditioner.blocks.1.cross_attn.o_proj", (64, 64)),
        ("lora_unet_llm_adapter_blocks_1_mlp_2", (64, 256)),
    ]
    path = loras.write(folder / "anima_lora.safetensors", "anima", "peft", modules)
    assert base_of(read_lora(path)) == "anima"
    assert deltas(model, path).keys() == {
        "blocks.0.self_attn.q_proj.weight",
        "blocks.0.adaln_modulation_cross_attn.1.weight",
        "llm_adapter.blocks.1.cross_attn.o_proj.weight",
        "llm_adapter.blocks.1.mlp.2.weight",
    }
