from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import InputError
from loraloom.folders import FileNotListed, ModelFolders, read_extra_paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (
        "loras/1.5/dpo.safetensors",
        "loras/style.safetensors",
        "loras/.hidden.safetensors",
        "loras/readme.txt",
        "clip/clip_l.safetensors",
        "text_encoders/t5.safetensors",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_lists_models_with_subfolders_and_nothing_else(root: Path) -> None:
    assert ModelFolders([root]).list("loras") == ["1.5/dpo.safetensors", "style.safetensors"]


def test_old_and_new_directory_names_are_one_kind(root: Path) -> None:
    folders = ModelFolders([root])
    assert folders.list("text_encoders") == ["clip_l.safetensors", "t5.safetensors"]
    assert folders.list("clip") == folders.list("text_encoders")


@pytest.mark.parametrize("name", ["1.5/dpo.safetensors", "1.5\\dpo.safetensors", "dpo.safetensors"])
def test_both_separators_and_a_bare_name_find_the_file(root: Path, name: str) -> None:
    assert ModelFolders([root]).resolve("loras", name) == root / "loras/1.5/dpo.safetensors"


def test_a_bare_name_in_two_subfolders_is_not_guessed(root: Path) -> None:
    other = root / "loras/xl/dpo.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"x")
    assert ModelFolders([root]).find("loras", "dpo.safetensors") is None


@pytest.mark.parametrize(
    "name", ["../clip/clip_l.safetensors", "/etc/passwd", "C:\\x.safetensors", "a\0b", "", "..", "x/../../y"]
)
def test_a_name_never_leads_out_of_its_folder(root: Path, name: str) -> None:
    assert ModelFolders([root]).find("loras", name) is None


def test_an_unknown_name_is_answered_with_the_nearest(root: Path) -> None:
    with pytest.raises(FileNotListed) as caught:
        ModelFolders([root]).resolve("loras", "styel.safetensors")
    assert caught.value.nearest == ("style.safetensors",)
    assert "style.safetensors" in str(caught.value)


def test_a_loop_of_links_ends(root: Path) -> None:
    (root / "loras/loop").symlink_to(root / "loras", target_is_directory=True)
    assert "style.safetensors" in ModelFolders([root]).list("loras")


def test_extra_model_paths(root: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "extra.yaml"
    yaml.write_text("a111:\n  base_path: more\n  loras: |\n    A\n    B\n  clip: te\n")
    (tmp_path / "more/B").mkdir(parents=True)
    (tmp_path / "more/B/new.safetensors").write_bytes(b"x")
    extra = read_extra_paths(yaml)
    assert extra["text_encoders"] == (tmp_path / "more/te",)
    assert "new.safetensors" in ModelFolders([root], extra).list("loras")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [unclosed", "\x00"])
def test_a_broken_yaml_is_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "extra.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="extra.yaml"):
        read_extra_paths(path)
