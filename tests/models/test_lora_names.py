"""Every name by which ComfyUI accepts a LoRA for a weight is known, and means the same weight."""

from __future__ import annotations

import pytest

from loraloom.models.lora_names import text_aliases, text_names
from loraloom.models.recognition import families
from loraloom.weights.patch import Target
from tests.lora.tables import NATIVE, measured, target_of


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_every_measured_name_of_a_network(name: str) -> None:
    table = measured(name)
    shapes = {
        native.removeprefix(NATIVE): tuple(shape)
        for native, shape in table["weights"].items()
        if native.startswith(NATIVE)
    }
    (family,) = (family for family in families() if family.matches(shapes))
    names = family.lora_names(shapes)
    expected = {key: target_of(value) for key, value in table["lora_keys"].items()}
    known = {key: target for key, target in expected.items() if target.weight in shapes}
    assert len(known) > 2000
    found = {key: names.get(key) for key in known}
    assert {key: (t.weight, t.rows) for key, t in found.items() if t} == {
        key: (t.weight, t.rows) for key, t in known.items()
    }
    assert {target.weight for target in names.values()} == set(shapes)


def test_the_last_modulation_of_flux_is_swapped() -> None:
    (flux,) = (family for family in families() if family.name == "flux")
    shapes = {key.removeprefix(NATIVE): tuple(shape) for key, shape in measured("flux")["weights"].items()}
    names = flux.lora_names(shapes)
    weight = "final_layer.adaLN_modulation.1.weight"
    assert names["transformer.norm_out.linear"] == Target(weight, swapped=True)
    assert names["diffusion_model.final_layer.adaLN_modulation.1"] == Target(weight)


@pytest.mark.parametrize("name", ["clip_sd15", "clip_sdxl", "clip_flux"])
def test_every_measured_name_of_text_encoders(name: str) -> None:
    expected: dict[str, str] = measured(name)["lora_keys"]
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for weight in expected.values():
        parts.setdefault(weight.split(".")[0], {})[weight] = (1, 1)
    names = text_names(parts)
    assert {key: names[key].weight for key in expected} == expected


def test_text_aliases_start_with_the_role() -> None:
    weight = "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    aliases = text_aliases({"clip_g": {weight: (4, 4)}})
    assert aliases == {"clip_g.text_model.encoder.layers.0.mlp.fc1": Target(weight)}


def test_a_lone_clip_g_answers_to_the_first_encoder_too() -> None:
    weight = "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    alone = text_names({"clip_g": {weight: (4, 4)}})
    assert alone["lora_te_text_model_encoder_layers_0_mlp_fc1"].weight == weight
    beside = text_names({"clip_l": {}, "clip_g": {weight: (4, 4)}})
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" not in beside
