"""Settings files: what is read, and what is refused with which words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import InputError
from loraloom.training.settings import Settings
from loraloom.training.toml import parse, read_toml, toml_text

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
        (
            'folder = "pictures"',
            'folder = "p"\nkeep_tokens = -1',
            "data[0].keep_tokens is -1; it must be at least 0",
        ),
        ("[[data]]", "[data]", "data is {'folder': 'pictures'}; expected a list"),
        ("[model]", "[model", "is not TOML"),
        ("[model]", 'model = "base"\n[run]', "model is 'base'; expected a table"),
        ("rate = 1", "warm_up = nan", "optimizer.warm_up is nan"),
        ("rate = 1", "rate = true", "optimizer.rate is True; expected a value of type float"),
        ("rate = 1", "rat = 1", "optimizer.rat is not a setting; did you mean 'rate'"),
        ("rate = 1", "x = 1", "optimizer.x is not a setting; known are name, rate"),
        (
            'folder = "pictures"',
            'folder = "p"\nfliip = true',
            "data[0].fliip is not a setting; did you mean 'flip'",
        ),
        ('folder = "pictures"', "folder = 3", "data[0].folder is 3; expected a value of type path"),
        ("[metadata]", "[run]\nsteps = 2.0\n[metadata]", "run.steps is 2.0; expected a value of type int"),
        ("[metadata]", "[run]\nsteps = 0\n[metadata]", "run.steps is 0; it must be at least 1"),
        ("[metadata]", "[run]\nsteps = 99999999\n[metadata]", "it must be at most 10000000"),
        ('author" = "me"', 'author" = 1', "metadata.modelspec.author is 1; expected a value of type str"),
        ("[metadata]", '[samples]\nprompts = "a"\n[metadata]', "samples.prompts is 'a'; expected a list"),
        (
            "[metadata]",
            "[samples]\nprompts = [1]\n[metadata]",
            "samples.prompts[0] is 1; expected a value of type str",
        ),
        (
            "betas = [0.9, 0.95]",
            'name = "prodigy"\ntext_rate = 0.5\n[adapter]\ntext_encoder = true',
            "prodigy finds one rate",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        _read(tmp_path, GOOD.replace(old, new))
    assert message in str(raised.value) and "settings.toml" in str(raised.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        _read(tmp_path, GOOD.replace('name = "x"', 'nmae = "x"').replace("rate = 1", 'rate = "fast"'))
    assert str(raised.value).count("\n") == 2
    assert "nmae is not" in str(raised.value).splitlines()[0]


def test_what_is_read(tmp_path: Path) -> None:
    text = GOOD.replace("rate = 1", "rate = 1\nwarm_up = 0").replace('"base', '"~/base')
    settings = _read(tmp_path, text)
    assert settings.optimizer.rate == 1.0 and settings.optimizer.warm_up == 0.0
    assert settings.model.checkpoint == Path("~/base.safetensors").expanduser()
    assert type(settings.data) is tuple and type(settings.optimizer.betas[0]) is float


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path / "none.toml", Settings)


KEYS = st.text(max_size=5) | st.sampled_from(
    ["name", "data", "adapter", "run", "model", "optimizer", "samples"]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5) | KEYS, VALUES, max_size=4)


@settings(max_examples=80)
@given(TABLES)
def test_what_is_written_as_toml_is_read_again(stated: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(stated)) == stated


@settings(max_examples=80)
@given(TABLES)
def test_any_settings_are_read_or_refused_in_words(stated: dict[str, Any]) -> None:
    try:
        parse(stated, Settings, Path())
    except InputError as error:
        assert str(error)
