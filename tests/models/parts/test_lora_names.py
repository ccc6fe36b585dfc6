"""Families tell where the modules that LoRA files name are; `tests/lora` checks every measured name."""

from __future__ import annotations

from loraloom.models.parts.lora_names import text_aliases
from loraloom.models.recognition import families
from loraloom.weights.patch import Target
from tests.lora.tables import NATIVE, measured


def test_the_last_modulation_of_flux_is_swapped() -> None:
    (flux,) = (family for family in families() if family.name == "flux")
    shapes = {key.removeprefix(NATIVE): tuple(shape) for key, shape in measured("flux")["weights"].items()}
    names = dict(flux.lora_aliases(shapes))
    assert names["norm_out.linear"] == Target("final_layer.adaLN_modulation.1.weight", swapped=True)


def test_text_aliases_start_with_the_role() -> None:
    weight = "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    aliases = text_aliases({"clip_g": {weight: (4, 4)}})
    assert aliases == {"clip_g.text_model.encoder.layers.0.mlp.fc1": Target(weight)}
