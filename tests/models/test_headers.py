"""Every published file is what it should be: recognised once, built, every weight placed, names both ways.

A file of a family that is not known yet must be refused; once `models/families` has the family, the same
fixture must load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from os.path import commonprefix
from pathlib import Path

import pytest
from torch import nn

from loraloom.cli.base_header import base_components
from loraloom.errors import ModelFileError
from loraloom.lora.file import read_lora
from loraloom.lora.origin import base_of
from loraloom.lora.place import place
from loraloom.models.checkpoint import open_autoencoder, open_checkpoint, open_diffusion_model
from loraloom.models.family import Blueprint
from loraloom.models.handles import DiffusionModel
from loraloom.models.names import Shapes
from loraloom.models.recognition import families, family_named, recognise
from loraloom.models.residency.slots import find_slots, is_unused
from loraloom.weights.header import read_header
from loraloom.weights.meta import build_unfilled
from tests.published import fixtures, write

DIFFUSION = {fixture.name: fixture for fixture in fixtures("diffusion")}
KNOWN = [name for name, fixture in DIFFUSION.items() if family_named(fixture.family)]
OTHERS = {fixture.name: fixture for kind in ("autoencoder", "text", "lora") for fixture in fixtures(kind)}
CHECKPOINTS = {
    "sd15": ("clip_l",),
    "sd15_inpainting": ("clip_l",),
    "sd21": ("clip_h",),
    "sdxl": ("clip_l", "clip_g"),
    "sdxl_refiner": ("clip_g",),
    "flux1_dev_fp8": ("clip_l", "t5xxl"),
    "flux1_schnell_fp8": ("clip_l", "t5xxl"),
}
"""Files that hold everything → kinds of their text encoders."""
LORAS = [fixture.name for fixture in fixtures("lora") if family_named(fixture.family)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("published")
    opened.cache_clear()
    MODULES.clear()


@cache
def opened(name: str, folder: Path) -> DiffusionModel:
    return open_diffusion_model(write(DIFFUSION[name], folder))


MODULES: dict[tuple[str, str], nn.Module] = {}


def built(model: DiffusionModel, blueprint: Blueprint) -> nn.Module:
    """The module of a file's network; files of one family and configuration share it."""
    key = model.family.name, repr(blueprint.config)
    if key not in MODULES:
        MODULES[key] = build_unfilled(blueprint.build)
    return MODULES[key]


def rows_of(ranges: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> set[int]:
    return {row for begin, end in ranges or ((0, shape[0] if shape else 1),) for row in range(begin, end)}


@pytest.mark.parametrize("name", DIFFUSION)
def test_recognised_once_or_refused(folder: Path, name: str) -> None:
    fixture = DIFFUSION[name]
    header = read_header(write(fixture, folder))
    if family_named(fixture.family) is None:
        with pytest.raises(ModelFileError, match="no diffusion model that is known here"):
            recognise(header)
        return
    found = recognise(header)
    assert found.family.name == fixture.family
    assert [family.name for family in families() if family.matches(found.shapes)] == [fixture.family]


@pytest.mark.parametrize("name", KNOWN)
def test_every_weight_has_its_place(folder: Path, name: str) -> None:
    model = opened(name, folder)
    blueprint = model.blueprint
    slots = find_slots(built(model, blueprint), blueprint, model.weights)
    for native, shape in model.weights.shapes.items():
        if is_unused(native, blueprint):
            continue
        rows = [rows_of(slot.placement.rows, shape) for slot in slots[native]]
        assert set.union(*rows) == rows_of((), shape), native
        assert sum(map(len, rows)) == len(set.union(*rows)), f"{native}: rows in two places"


@pytest.mark.parametrize("name", KNOWN)
def test_names_go_there_and_back(folder: Path, name: str) -> None:
    model = opened(name, folder)
    native, blueprint = model.weights.shapes, model.blueprint
    theirs = {key: tuple(value.shape) for key, value in built(model, blueprint).state_dict().items()}
    table = model.family.names.of_module(theirs)
    assert table is not None
    pieces = table.regrouping(theirs)
    used = {key for key in native if not is_unused(key, blueprint)}
    assert set(pieces) == used
    sizes = {key: sum(_size(theirs, *piece) for piece in parts) for key, parts in pieces.items()}
    assert sizes == {key: prod(native[key]) for key in used}
    assert set(blueprint.placements) == set(theirs)


def _size(shapes: Shapes, name: str, rows: tuple[int, int] | None) -> int:
    shape = shapes[name]
    return prod(shape) if rows is None else (rows[1] - rows[0]) * prod(shape[1:])


@pytest.mark.parametrize("name", [name for name in KNOWN if DIFFUSION[name].native])
def test_diffusers_layout_holds_the_same_network(folder: Path, name: str) -> None:
    native = opened(DIFFUSION[name].native, folder)
    assert _elements(opened(name, folder).weights.shapes) == _elements(native.weights.shapes)


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_no_diffusion_models(folder: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match="no diffusion model"):
        recognise(read_header(write(OTHERS[name], folder)))


@pytest.mark.parametrize("name", LORAS)
def test_every_module_of_a_lora_has_its_place(folder: Path, name: str) -> None:
    fixture = OTHERS[name]
    bases = [one for one in DIFFUSION.values() if one.family == fixture.family and not one.native]
    base = max(bases, key=lambda one: len(commonprefix((one.name, name))))  # of the same size
    found = place(read_lora(write(fixture, folder)), base_components(write(base, folder)))
    assert (found.unplaced, found.unknown, found.rejected) == ((), (), ())
    assert found.modules("model") == found.totals["model"] > 0


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_is_told_by_its_names_and_widths(folder: Path, name: str) -> None:
    fixture = OTHERS[name]
    assert base_of(read_lora(write(fixture, folder))) == fixture.family


@pytest.mark.parametrize(("name", "encoders"), CHECKPOINTS.items())
def test_checkpoints_hold_encoders_and_autoencoder(
    folder: Path, name: str, encoders: tuple[str, ...]
) -> None:
    _, text, vae = open_checkpoint(write(DIFFUSION[name], folder))
    assert text is not None and vae is not None
    assert tuple(part.role for part in text.parts) == encoders
    for part in text.parts:
        blueprint = part.blueprint
        assert find_slots(build_unfilled(blueprint.build), blueprint, part.weights)
    blueprint = vae.blueprint
    assert find_slots(build_unfilled(blueprint.build), blueprint, vae.weights)


AUTOENCODERS = {fixture.name: fixture for fixture in fixtures("autoencoder")}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_key_of_an_autoencoder_is_placed(folder: Path, name: str) -> None:
    vae = open_autoencoder(write(AUTOENCODERS[name], folder))
    kinds = {"flux2": "flux2", "qwen_image_21": "qwen_image21", "qwen_image_vae": "wan"}
    assert vae.kind.name == next((kind for start, kind in kinds.items() if name.startswith(start)), "kl")
    blueprint = vae.blueprint
    assert find_slots(build_unfilled(blueprint.build), blueprint, vae.weights)


def test_each_fixture_says_where_it_comes_from() -> None:
    for fixture in (*DIFFUSION.values(), *OTHERS.values()):
        assert fixture.source, fixture.name
        assert fixture.native in ("", *DIFFUSION, *OTHERS)


def test_every_family_has_a_published_file() -> None:
    """Names of families are spelt here as folders of `models/families` are."""
    assert {fixture.family for fixture in DIFFUSION.values()} >= {family.name for family in families()}
