"""Every name by which ComfyUI accepts a LoRA resolves to the weight and the rows that ComfyUI changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.lora.comfyui import known_names
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.module_names import INSIDE, REPEATED, TRAILING, Names, take_apart
from loraloom.lora.place import place
from loraloom.lora.tensor_names import split_key
from loraloom.models.recognition import families
from loraloom.weights.patch import Target

from . import tables


def _misses(component: Component, kind: str, table: str) -> list[tuple[str, Target | None, Target]]:
    names = Names(component)
    wrong: list[tuple[str, Target | None, Target]] = []
    for key, value in tables.measured(table)["lora_keys"].items():
        expected = tables.target_of(value)
        if expected.weight not in component.shapes:
            continue  # ComfyUI lists names of weights that this network does not have
        name = take_apart(key)
        found = names.target(name)
        if found != expected or name.component not in (kind, None):
            wrong.append((key, found, expected))
    return wrong


@pytest.mark.parametrize("family", tables.MEASURED)
def test_every_name_of_a_network_resolves(family: str) -> None:
    assert _misses(tables.model(family), "model", family) == []


@pytest.mark.parametrize("family", tables.MEASURED)
def test_every_name_of_text_encoders_resolves(family: str) -> None:
    assert _misses(tables.clip(family), "clip", f"clip_{family}") == []


@pytest.mark.parametrize("family", tables.MEASURED)
def test_the_names_comfyui_knows_are_exactly_the_measured_ones(family: str) -> None:
    for kind, component in tables.components(family).items():
        table = family if kind == "model" else f"clip_{family}"
        measured = {
            key
            for key, value in tables.measured(table)["lora_keys"].items()
            if tables.target_of(value).weight in component.shapes
        }
        assert known_names(kind, component) == measured


@pytest.mark.parametrize("name", tables.MEASURED)
def test_families_supply_every_alias_that_the_names_need(name: str) -> None:
    """The same check with the aliases that the model families themselves compute from shapes."""
    shapes = tables.model(name).shapes
    family = next(family for family in families() if family.matches(shapes))
    component = Component(family.name, shapes, dict(family.lora_aliases(shapes)))
    assert _misses(component, "model", name) == []
    assert known_names("model", component) == known_names("model", tables.model(name))


PLAIN = Component("sd15", {"input_blocks.1.1.proj_in.weight": (8, 8)}, {
    "down_blocks.0.attentions.0.proj_in": Target("input_blocks.1.1.proj_in.weight")
})  # fmt: skip
TEXT = Component("sd15", {"clip_l.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)})


@pytest.mark.parametrize(
    ("name", "slip"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in_", TRAILING),
        ("lora_unet_lora_unet_down_blocks_0_attentions_0_proj_in", REPEATED),
        ("lora_unet_lora_unet_lora_unet_down_blocks_0_attentions_0_proj_in", REPEATED),
        ("unet.unet.down_blocks.0.attentions.0.proj_in", REPEATED),
        ("diffusion_model.diffusion_model.input_blocks.1.1.proj_in", REPEATED),
        ("state_dict.lora_unet_down_blocks_0_attentions_0_proj_in", ""),
        ("state_dict.unet.down_blocks.0.attentions.0.proj_in", ""),
        ("base_model.model.base_model.model.down_blocks.0.attentions.0.proj_in", ""),
        ("unet.state_dict.down_blocks.0.attentions.0.proj_in", ""),
        ("unet.lora_unet_down_blocks_0_attentions_0_proj_in", INSIDE),
        ("lora_unet_diffusion_model_input_blocks_1_1_proj_in", INSIDE),
        ("lora_unet_base_model_model_down_blocks_0_attentions_0_proj_in", INSIDE),
        ("network.lora_unet_down_blocks_0_attentions_0_proj_in", INSIDE),
        ("model.model.diffusion_model.input_blocks.1.1.proj_in", INSIDE),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1_", TRAILING),
        ("lora_te_lora_te_text_model_encoder_layers_0_mlp_fc1", REPEATED),
        ("text_encoder.text_encoder.text_model.encoder.layers.0.mlp.fc1", REPEATED),
    ],
)
def test_names_that_were_written_wrongly_are_placed(name: str, slip: str) -> None:
    found = take_apart(name)
    assert found.slip == slip
    target = Names(TEXT if found.component == "clip" else PLAIN).target(found)
    assert target is not None


def test_a_slip_is_warned_of(tmp_path: Path) -> None:
    module = "lora_unet_down_blocks_0_attentions_0_proj_in_"
    save_file(
        {f"{module}.lora_up.weight": torch.ones(8, 2), f"{module}.lora_down.weight": torch.ones(2, 8)},
        tmp_path / "x.safetensors",
    )
    found = place(read_lora(tmp_path / "x.safetensors"), {"model": PLAIN})
    assert [piece.module for piece in found.pieces] == [module]
    assert any("underscore at the end" in warning for warning in found.warnings)


@pytest.mark.parametrize("form", [".lora_{}.weight", ".lora_{}.default.weight", ".lora_{}"])
def test_small_letters_a_and_b(form: str) -> None:
    assert split_key("x" + form.format("a")) == ("x", "down")
    assert split_key("x" + form.format("b")) == ("x", "up")
