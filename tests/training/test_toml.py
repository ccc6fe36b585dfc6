"""Settings files: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import InputError
from loraloom.training.settings import Settings
from loraloom.training.toml import read_toml

GOOD = """
name = "x"
output = "out"
[model]
checkpoint = "base.safetensors"
[[data]]
folder = "pictures"
[optimizer]
rate = 1
betas = [0.9, 0.95]
[metadata]
"modelspec.author" = "me"
"""


def _read(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "settings.toml"
    path.write_text(text, "utf-8")
    return read_toml(path, Settings)


def test_paths_are_relative_to_the_file_and_the_rest_has_defaults(tmp_path: Path) -> None:
    settings = _read(tmp_path, GOOD)
    assert settings.output == tmp_path / "out"
    assert settings.data[0].folder == tmp_path / "pictures"
    assert settings.optimizer.rate == 1.0 and settings.optimizer.betas == (0.9, 0.95)
    assert settings.adapter.kind == "lora" and settings.metadata == {"modelspec.author": "me"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "x"', 'nmae = "x"', "nmae is not a setting; did you mean 'name'"),
        ('name = "x"', "", "name is missing"),
        ('name = "x"', "name = 3", "name is 3; expected a value of type str"),
        ('name = "x"', 'name = "../x"', "is not a file name"),
        ("rate = 1", 'rate = "fast"', "optimizer.rate is 'fast'; expected a value of type float"),
        ("rate = 1", 'name = "sgd"', "optimizer.name is 'sgd'; choose one of adamw"),
        ("betas = [0.9, 0.95]", "betas = [0.9]", "betas are two numbers"),
        ('folder = "pictures"', 'folder = "p"\nkeep_tokens = -1', "data.keep_tokens is -1"),
        ("[[data]]", "[data]", "data is {'folder': 'pictures'}; expected a list"),
        ("[model]", "[model", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        _read(tmp_path, GOOD.replace(old, new))
    assert message in str(raised.value) and "settings.toml" in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path / "none.toml", Settings)
