"""Every name by which ComfyUI accepts a LoRA resolves to the weight and the rows that ComfyUI changes."""

from __future__ import annotations

import pytest

from loraloom.lora.comfyui import known_names
from loraloom.lora.component import Component
from loraloom.lora.module_names import Names, take_apart
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
