"""One algebra is one file: adding one touches no other, and no other file names its tensors."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraloom.lora
from loraloom.lora import algorithms
from loraloom.lora.algebra import SHARED, Algebra, Ingredients
from loraloom.lora.algebras import algebra_title, registry, registry_of
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.convert import convert
from loraloom.lora.file import read_lora
from loraloom.lora.inspect import page_of
from loraloom.lora.load import load_lora
from loraloom.weights.patch import Target

from .test_load import random

PACKAGE = Path(loraloom.lora.__file__).parent
BASE: dict[ComponentName, Component] = {
    "model": Component(
        "sd15",
        {"input_blocks.1.1.proj_in.weight": (8, 8)},
        {"down_blocks.0.attentions.0.proj_in": Target("input_blocks.1.1.proj_in.weight")},
    )
}
KOHYA, WEIGHT = "lora_unet_down_blocks_0_attentions_0_proj_in", "input_blocks.1.1.proj_in.weight"

OUTER = '''
"""A column and a row: ΔW = γ · column ⊗ row."""

from loraloom.lora.algebra import Algebra
from loraloom.lora.changes import Stored
from loraloom.lora.shape_check import misfit_of_matrix


class Outer(Algebra):
    name = "outer"
    title = "outer product"
    endings = {".outer_column": "column", ".outer_row": "row"}
    needs = ("column row",)
    takes = "alpha"
    summands = ("column row",)
    peft = ("outer_column", "outer_row")
    scaled = True

    def misfit(self, shapes, weight):
        return misfit_of_matrix((shapes["column"][0], shapes["row"][0]), weight)

    def rank(self, shapes):
        return 1

    def build(self, given):
        return Stored(given.exact("column").outer(given.exact("row")) * given.gamma)


ALGEBRA = Outer()
'''


@pytest.fixture
def outer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new algebra: one file more in the folder."""
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "outer.py").write_text(OUTER, "utf-8")
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path / "algorithms")])
    registry.cache_clear()
    yield
    registry.cache_clear()
    sys.modules.pop("loraloom.lora.algorithms.outer", None)


@pytest.mark.usefixtures("outer")
def test_adding_an_algebra_touches_one_file(tmp_path: Path) -> None:
    """Its names, its scale, its place in receipt and page, its change, its conversion, and half of it."""
    column, row = random(8), random(8, seed=1)
    tensors = {
        f"{KOHYA}.outer_column": column,
        f"{KOHYA}.outer_row": row,
        f"{KOHYA}.alpha": torch.tensor(3.0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    file = read_lora(tmp_path / "a.safetensors")
    lora = load_lora(file, BASE, strict=True)
    (patch,) = lora.model.patches()[WEIGHT]
    torch.testing.assert_close(patch.apply(torch.zeros(8, 8), 0.5), 1.5 * torch.outer(column, row))
    assert lora.receipt.algorithms == {"outer product": 1} and "γ = 3" in lora.receipt.alpha
    assert page_of(file).algorithms == {"outer product": 1}
    assert algebra_title("dora on outer") == "DoRA on outer product"
    convert(file, BASE, tmp_path / "b.safetensors", "diffusers")
    name = "unet.down_blocks.0.attentions.0.proj_in"
    assert torch.equal(load_file(tmp_path / "b.safetensors")[f"{name}.outer_row"], row)
    save_file({f"{name}.outer_row.default": row}, tmp_path / "half.safetensors")
    (rejected,) = page_of(read_lora(tmp_path / "half.safetensors"), BASE).fit["rejected"]  # pyright: ignore[reportOptionalSubscript]
    assert "row without column" in rejected["reason"]


def _constants(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a file's code, without its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


OTHERS = ("other_files.py", "unsupported.py")
"""Files about adapters and files that are no LoRA of ours, whose names may resemble ours."""

PLAIN_WORDS = {"weight", "up", "down", *SHARED.values()}
"""Roles that are words with other meanings, too."""


def test_no_other_file_names_the_tensors_of_an_algebra() -> None:
    known = {**registry().algebras, **registry().wrappers}
    endings = {ending for one in known.values() for ending in one.endings} - {".weight", *SHARED}
    roles = {role for one in known.values() for role in one.endings.values()} - PLAIN_WORDS
    pattern = re.compile("|".join(rf"{re.escape(ending)}(?!\w)" for ending in endings))
    named = [
        f"{path.name}:{line}: {text!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE / "algorithms" and path.name not in OTHERS
        for line, text in _constants(path)
        if text in roles or pattern.search(text)
    ]
    assert named == []
    assert len(endings) > 40 and len(roles) > 30  # the search has something to search for


def test_every_file_of_the_folder_is_one_algebra_of_its_name() -> None:
    files = {path.stem for path in (PACKAGE / "algorithms").glob("*.py")} - {"__init__"}
    assert files == registry().algebras.keys() | registry().wrappers.keys()


def test_every_role_that_an_algebra_speaks_of_has_an_ending() -> None:
    everywhere = {role for one in registry().algebras.values() for role in one.endings.values()}
    for one in registry().algebras.values():
        spoken = " ".join((*one.needs, *one.needs_on_bias, one.takes, *one.summands)).split()
        assert set(spoken) <= everywhere | set(SHARED.values()), one.name
        assert {role for need in one.needs for role in need.split()} <= set(one.endings.values()), one.name


class _Second(Algebra):
    name = "lora"
    title = "another"
    endings = {".other": "other"}


class _Disagreeing(Algebra):
    name = "disagreeing"
    title = "disagreeing"
    endings = {".diff": "not a difference"}


def test_two_algebras_of_one_name_or_one_ending_are_refused() -> None:
    there = registry().algebras
    with pytest.raises(ValueError, match=r"called 'lora'.*lora\.Lora.*_Second"):
        registry_of([there["lora"], _Second()])
    with pytest.raises(ValueError, match="'.diff' is 'diff' and, in 'disagreeing', 'not a difference'"):
        registry_of([there["full"], _Disagreeing()])


def test_every_role_is_written_under_an_ending_that_is_read_as_that_role() -> None:
    for algebra in registry().algebras.values():
        roles = {role: torch.zeros(1) for role in algebra.endings.values()}
        read = {algebra.endings[ending] for ending in algebra.written(roles)}
        assert read == roles.keys() or algebra.name == "bias"


def test_a_butterfly_of_peft_is_read_again_after_conversion(tmp_path: Path) -> None:
    tensors = {"boft_R": random(2, 2, 4, 4) / 9, "boft_s": random(8, 1)}
    save_file({f"{KOHYA}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    before = load_lora(read_lora(tmp_path / "a.safetensors"), BASE, strict=True)
    convert(read_lora(tmp_path / "a.safetensors"), BASE, tmp_path / "b.safetensors", "native")
    after = load_lora(read_lora(tmp_path / "b.safetensors"), BASE, strict=True)
    base = random(8, 8, seed=5)
    (one,), (other,) = before.model.patches()[WEIGHT], after.model.patches()[WEIGHT]
    changed = one.apply(base.clone(), 1.0)
    assert torch.equal(changed, other.apply(base.clone(), 1.0)) and not torch.equal(changed, base)


@pytest.mark.parametrize(
    ("kind", "zero", "expected"),
    [
        ("lora", "up", True),
        ("lora", "alpha", False),
        ("glora", "a2", False),
        ("glora", "a2 b2", True),
        ("ia3", "ia3", False),
        ("sparse", "bias_indices", False),
        ("sparse", "bias_values", True),
        ("oft", "oft_blocks", False),
        ("set", "set_weight", False),
    ],
)
def test_a_change_is_zero_where_every_product_in_it_is(kind: str, zero: str, expected: bool) -> None:
    algebra = registry().algebras[kind]
    roles = set(" ".join((*algebra.needs[-1:], *algebra.needs_on_bias)).split()) | {"alpha"}
    tensors = {role: torch.zeros(1) if role in zero.split() else torch.ones(1) for role in roles}
    assert algebra.is_zero(tensors) == expected


def test_algebras_are_known_without_torch() -> None:
    """Their files are read where torch is not loaded: none imports it but where it computes."""
    for path in (PACKAGE / "algorithms").glob("*.py"):
        assert not re.search(r"^(import torch|from torch)", path.read_text("utf-8"), re.MULTILINE), path.name


def test_ingredients_say_what_pefts_config_says() -> None:
    given = Ingredients({"oft_r": random(2, 6) / 9}, (8, 8), 1.0, config={"use_cayley_neumann": False})
    oftv2 = registry().algebras["oftv2"]
    assert oftv2.unsaid(given.config) is not None and oftv2.unsaid({}) is None
    weight = random(8, 8, seed=2)
    exact = oftv2.build(given).apply(weight.clone(), 1.0)
    torch.testing.assert_close(exact.norm(), weight.norm())  # the exact transform is a rotation
