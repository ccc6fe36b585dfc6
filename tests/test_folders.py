from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loraloom.errors import InputError
from loraloom.folders import FileNotListed, ModelFolders, model_folders, nearest_files, read_extra_paths


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


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pixel", ("pixel_art.safetensors",)),
        ("sub/Pixel-Art.safetensors", ("pixel_art.safetensors",)),
        ("old\\detail_tweaker.safetensors", ("sd15/detail.safetensors",)),
        ("nosuch.safetensors", ()),
        ("detail.safetensors", ("sd15/detail.safetensors",)),
        ("ae", ()),
    ],
)
def test_names_are_compared_without_folders_and_suffixes(name: str, nearest: tuple[str, ...]) -> None:
    listed = ["charcoal.safetensors", "pixel_art.safetensors", "sd15/detail.safetensors"]
    assert nearest_files(name, listed) == nearest


def test_a_loop_of_links_ends(root: Path) -> None:
    (root / "loras/loop").symlink_to(root / "loras", target_is_directory=True)
    assert "style.safetensors" in ModelFolders([root]).list("loras")


def test_extra_model_paths(root: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "extra.yaml"
    yaml.write_text("a111:\n  base_path: more\n  loras: |\n    A\n    B\n  clip: te\n")
    (tmp_path / "more/B").mkdir(parents=True)
    (tmp_path / "more/B/new.safetensors").write_bytes(b"x")
    extra = read_extra_paths(yaml)
    assert extra.last["text_encoders"] == (tmp_path / "more/te",)
    assert "new.safetensors" in ModelFolders([root], extra).list("loras")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [unclosed", "\x00"])
def test_a_broken_yaml_is_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "extra.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="extra.yaml"):
        read_extra_paths(path)


def _yaml(folder: Path, text: str) -> Path:
    path = folder / "extra_model_paths.yaml"
    path.write_text(text, "utf-8")
    return path


def test_extra_folders_come_after_the_models_folder_unless_they_are_the_default(tmp_path: Path) -> None:
    for folder in ("models/loras", "one", "two"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.safetensors").write_bytes(b"x")
    _yaml(tmp_path, "a:\n  loras: one\n")

    def found() -> list[str]:
        folders = model_folders([tmp_path / "models"])
        assert folders.find("loras", "x.safetensors") == folders.directories("loras")[0] / "x.safetensors"
        return [path.relative_to(tmp_path).as_posix() for path in folders.directories("loras")]

    assert found() == ["models/loras", "one"]
    _yaml(tmp_path, "a:\n  is_default: true\n  loras: one\nb:\n  is_default: false\n  loras: two\n")
    assert found() == ["one", "models/loras", "two"]
    _yaml(tmp_path, "a:\n  is_default: true\n  loras: one\nb:\n  is_default: true\n  loras: two\n")
    assert found() == ["two", "one", "models/loras"]


def test_the_folders_own_yaml_comes_before_one_that_is_named(tmp_path: Path) -> None:
    for folder in ("models/loras", "one", "two"):
        (tmp_path / folder).mkdir(parents=True)
    _yaml(tmp_path, "a:\n  loras: one\n")
    named = tmp_path / "named.yaml"
    named.write_text("a:\n  loras: two\n")
    folders = model_folders([tmp_path / "models"], [named])
    assert [path.name for path in folders.directories("loras")] == ["loras", "one", "two"]


@pytest.mark.parametrize(
    "text",
    [
        "comfyui:\n  base_path: more\n  loras:\n    - A\n    - B\n",
        "comfyui:\n  base_path: more\n  loras: |\n    A\n\n    B\n",
        "base_path: more\nloras: |\n  A\n  B\n",
        "comfyui:\n  base_path: more\n  loras: |\n    A\n    # C\n    B\n",
        "loras: [more/A, more/B]\n",
        "comfyui:\n  loras: [more/A, null, more/B]\n  vae:\n",
        "comfyui:\n  base_path:\n  loras: [more/A, more/B]\nother:\n",
        "\ufeffcomfyui:\n  base_path: more\n  loras: [A, B]\n",
    ],
)
def test_forms_of_the_yaml(text: str, tmp_path: Path) -> None:
    extra = read_extra_paths(_yaml(tmp_path, text))
    assert extra.last["loras"] == (tmp_path / "more/A", tmp_path / "more/B")
    assert not extra.last.get("vae")


@pytest.mark.parametrize("text", ["", "# comfyui:\n#   loras: x\n", "comfyui:\n", "comfyui:\n  loras:\n"])
def test_a_yaml_that_says_nothing_adds_nothing(text: str, tmp_path: Path) -> None:
    extra = read_extra_paths(_yaml(tmp_path, text))
    assert not any(extra.first.values()) and not any(extra.last.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("comfyui: models\n", "comfyui is no section"),
        ("a:\n  loras:\n    x: y\n", "loras holds more than paths"),
        ("loras: true\n", "loras holds True .bool., which is no path; expected `loras: DIR`"),
        ("a:\n  loras: 2024\n", "loras holds 2024"),
        ("a:\n  loras: [A, 2024-01-01]\n", "loras holds datetime.date"),
        ("a:\n  loras: .nan\n", "loras holds nan"),
        ("a:\n  base_path: false\n  loras: A\n", "base_path holds False"),
        ("a:\n  base_path: [more]\n  loras: A\n", "base_path holds .'more'."),
        ("a:\n  is_default: maybe\n  loras: A\n", "is_default holds 'maybe'; expected true or false"),
        ("a:\n  is_default: [false]\n  loras: A\n", "is_default holds"),
    ],
)
def test_what_a_yaml_cannot_mean_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as raised:
        read_extra_paths(_yaml(tmp_path, text))
    assert "extra_model_paths.yaml" in str(raised.value)


COMPOSED, DECOMPOSED = "caf\u00e9.safetensors", "cafe\u0301.safetensors"


@pytest.mark.parametrize(("stored", "asked"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
@pytest.mark.parametrize("folder", ["", "sub/"])
def test_letters_may_be_composed_in_two_ways(stored: str, asked: str, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "loras" / folder / stored
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    folders = ModelFolders([tmp_path])
    assert folders.find("loras", folder + asked) == path
    assert folders.find("loras", asked) == path


def test_every_link_to_a_folder_is_listed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/x.safetensors").write_bytes(b"x")
    (tmp_path / "loras").mkdir()
    for name in ("Lora", "LyCORIS"):
        (tmp_path / "loras" / name).symlink_to(tmp_path / "store", target_is_directory=True)
    assert ModelFolders([tmp_path]).list("loras") == ["Lora/x.safetensors", "LyCORIS/x.safetensors"]


def test_a_maze_of_links_ends(tmp_path: Path) -> None:
    names = [f"d{number}" for number in range(8)]
    for name in names:
        (tmp_path / "loras" / name).mkdir(parents=True)
    for name in names:
        for other in names:
            (tmp_path / "loras" / name / f"to_{other}").symlink_to(tmp_path / "loras" / other)
    (tmp_path / "loras/d0/x.safetensors").write_bytes(b"x")
    (tmp_path / "loras/circle").symlink_to(tmp_path / "loras/circle")
    assert "d0/x.safetensors" in ModelFolders([tmp_path]).list("loras")


def test_a_name_may_hold_a_colon(root: Path) -> None:
    path = root / "loras/style:v2.safetensors"
    path.write_bytes(b"x")
    assert ModelFolders([root]).find("loras", "style:v2.safetensors") == path


def test_a_file_elsewhere_on_the_disk_may_be_offered(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("downloads")
    for name in ("new.safetensors", "style.safetensors"):
        (elsewhere / name).write_bytes(b"other")
    folders = ModelFolders([root])
    assert folders.offered("loras", "style.safetensors") == "style.safetensors"
    assert folders.offered("loras", str(root / "loras/1.5/dpo.safetensors")) == "1.5/dpo.safetensors"
    assert folders.offered("loras", str(elsewhere / "new.safetensors")) == "new.safetensors"
    assert folders.resolve("loras", "new.safetensors") == elsewhere / "new.safetensors"
    name = folders.offered("loras", str(elsewhere / "style.safetensors"))
    assert name == (elsewhere / "style.safetensors").as_posix()
    assert folders.find("loras", str(name)) == elsewhere / "style.safetensors"
    assert folders.resolve("loras", "style.safetensors") == root / "loras/style.safetensors"
    assert {"new.safetensors", name} <= set(folders.list("loras"))
    monkeypatch.chdir(elsewhere)
    (elsewhere / "here.safetensors").write_bytes(b"x")
    assert folders.offered("loras", "./here.safetensors") == "here.safetensors"
    assert folders.offered("loras", "none.safetensors") is None
    assert folders.find("vae", "new.safetensors") is None


@pytest.mark.timeout(20)
def test_links_to_nothing_pipes_and_loops_are_no_models(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    (loras / "sub").mkdir(parents=True)
    (loras / "good.safetensors").write_bytes(b"x")
    (loras / "dangling.safetensors").symlink_to("nowhere")
    (loras / "loop.safetensors").symlink_to("loop.safetensors")
    if sys.platform == "win32":
        pytest.skip("pipes are no files there")
    os.mkfifo(loras / "pipe.safetensors")
    os.mkfifo(loras / "sub" / "pipe.safetensors")
    (loras / "sub" / "up").symlink_to(loras)
    (loras / "sub" / "self").symlink_to(".")
    folders = ModelFolders([tmp_path])
    assert folders.list("loras") == ["good.safetensors"]
    for name in ("dangling.safetensors", "loop.safetensors", "pipe.safetensors", "sub/pipe.safetensors"):
        assert folders.find("loras", name) is None
        with pytest.raises(FileNotListed):
            folders.resolve("loras", name)


@pytest.mark.parametrize(
    "kind", ["..", ".", "", "/etc", "../loras", "loras/..", "loras\\..", "a\0", "C:", "loras/x"]
)
def test_a_kind_never_leads_out_of_the_models_folder(kind: str, root: Path) -> None:
    folders = ModelFolders([root / "loras"])
    assert folders.searched(kind) == ()
    assert folders.list(kind) == []
    assert folders.find(kind, "a.safetensors") is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text_are_not_listed(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    (loras / "fine").mkdir(parents=True)
    for name in (b"\xff.safetensors", b"fine/a.safetensors", b"fine/\x82\xa0.safetensors"):
        Path(os.fsdecode(bytes(loras) + b"/" + name)).write_bytes(b"x")
    assert ModelFolders([tmp_path]).list("loras") == ["fine/a.safetensors"]
