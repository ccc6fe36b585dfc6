"""A family is a folder of two files, and nothing else knows of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import loraloom
from loraloom.models.autoencoder import autoencoder_kinds
from loraloom.models.encoder import encoder_kinds
from loraloom.models.recognition import families, found_in

PACKAGE = Path(loraloom.__file__).parent
FAMILIES = PACKAGE / "models" / "families"
KNOW_NAMES = {
    "lora/origin.py": "models that Loraloom does not run, known by their LoRAs",
    "models/parts/flux_latents.py": "a latent format that several families share goes by the first of them",
    "models/parts/unet_layout.py": "the same",
    "models/text/recipes.py": "ComfyUI's types of CLIP loaders",
    "nodes/loaders.py": "the same",
    "workflow/drawing.py": "what the page may ask for, which knows no models",
}
"""Shared files in which the name of a family is a text, and why."""


def test_a_family_is_two_files() -> None:
    for family in families():
        files = {path.name for path in (FAMILIES / family.name).glob("*.py")}
        assert files == {"__init__.py", "family.py", "network.py"}, family.name


def test_no_shared_file_names_a_family() -> None:
    names = {family.name for family in families()}
    found = {
        str(path.relative_to(PACKAGE)): sorted(set(texts))
        for path in PACKAGE.rglob("*.py")
        if not {"families", "encoders", "autoencoders"} & set(path.relative_to(PACKAGE).parts)
        and (texts := [text for text in _texts(path) if text in names])
    }
    assert found.keys() <= KNOW_NAMES.keys(), {k: v for k, v in found.items() if k not in KNOW_NAMES}


def _texts(path: Path) -> Iterator[str]:
    """The texts in a file's code, docstrings left out."""
    tree = ast.parse(path.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_two_families_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "other_families"
    for folder in ("one", "two"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").write_text("")
        text = "from types import SimpleNamespace\nFAMILY = SimpleNamespace(name='one')\n"
        (package / folder / "family.py").write_text(text)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"other_families\.two is called 'one'"):
        found_in([str(package)], "other_families")


@pytest.mark.parametrize(
    ("init", "text", "message"),
    [
        (False, "FAMILY = None", r"other_families\.one lacks an __init__\.py"),
        (True, "OTHER = 1", r"other_families\.one\.family does not end in FAMILY"),
    ],
)
def test_a_family_that_would_not_be_found_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: bool, text: str, message: str
) -> None:
    folder = tmp_path / "incomplete" / "other_families" / "one"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "family.py").write_text(text)
    if init:
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "incomplete")
    for name in [name for name in sys.modules if name.startswith("other_families")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=message):
        found_in([str(folder.parent)], "other_families")


def test_registries_import_no_torch() -> None:
    code = (
        "import sys; from loraloom.models.recognition import families; "
        "from loraloom.models.encoder import encoder_kinds; "
        "from loraloom.models.autoencoder import autoencoder_kinds; "
        "families(); encoder_kinds(); autoencoder_kinds(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_of_what_is_added_where_is_true() -> None:
    """Folders that docs/architecture.md calls registries are there, and hold what it says."""
    table = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
    registries = {
        "models/families/NAME": families(),
        "models/encoders/NAME.py": encoder_kinds(),
        "models/autoencoders/NAME.py": autoencoder_kinds(),
        "lora/algorithms/NAME.py": True,
        "training/kinds/NAME.py": True,
        "weights/storage/": True,
    }
    for place, held in registries.items():
        assert f"`{place}`" in table, place
        assert (PACKAGE / place.removesuffix("NAME.py").removesuffix("NAME")).is_dir() and held
