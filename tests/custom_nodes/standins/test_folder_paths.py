from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraloom.custom_nodes.file_list import FileList
from loraloom.custom_nodes.standins.folder_paths import FolderPaths
from loraloom.errors import InputError
from loraloom.folders import ModelFolders


@pytest.fixture
def paths(tmp_path: Path) -> FolderPaths:
    for name in (
        "models/loras/deep/a.safetensors",
        "models/loras/b.safetensors",
        "input/in.png",
        "own/x.onnx",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    (tmp_path / "own/readme.md").write_text("-")
    (tmp_path / "secret.safetensors").write_bytes(b"-")
    return FolderPaths(ModelFolders([tmp_path / "models"], input_dir=tmp_path / "input"), tmp_path / "out")


def test_model_files(paths: FolderPaths, tmp_path: Path) -> None:
    assert paths.get_filename_list("loras") == ["b.safetensors", "deep/a.safetensors"]
    assert paths.get_full_path("loras", "b.safetensors") == str(tmp_path / "models/loras/b.safetensors")
    assert paths.get_full_path("loras", "none") is None
    assert paths.get_folder_paths("loras") == [str(tmp_path / "models/loras")]
    assert paths.models_dir == str(tmp_path / "models")
    with pytest.raises(FileNotFoundError, match="none"):
        paths.get_full_path_or_raise("loras", "none")
    with pytest.raises(KeyError):
        paths.get_filename_list("unheard_of")


def test_kinds_of_a_packs_own(paths: FolderPaths, tmp_path: Path) -> None:
    paths.add_model_folder_path("detectors", str(tmp_path / "nowhere"))
    paths.add_model_folder_path("detectors", str(tmp_path / "own"), is_default=True)
    paths.folder_names_and_paths["detectors"][1].add(".onnx")
    assert paths.get_filename_list("detectors") == ["x.onnx"]
    assert paths.get_full_path("detectors", "x.onnx") == str(tmp_path / "own/x.onnx")
    paths.add_model_folder_path("loras", str(tmp_path / "own"))
    paths.folder_names_and_paths["loras"][1].add(".onnx")
    assert paths.get_filename_list("loras")[-1] == "deep/a.safetensors"
    assert paths.get_full_path("loras", "x.onnx") == str(tmp_path / "own/x.onnx")


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "..", "/etc/passwd", "deep/../../../secret.safetensors"]
)
def test_no_name_leads_out(paths: FolderPaths, tmp_path: Path, name: str) -> None:
    paths.add_model_folder_path("own", str(tmp_path / "own"))
    assert paths.get_full_path("loras", name) is None
    assert paths.get_full_path("own", name) is None
    assert not paths.exists_annotated_filepath(name + " [input]")
    with pytest.raises(InputError, match="leads out"):
        paths.get_annotated_filepath(name + " [output]")
    with pytest.raises(InputError, match="leads out"):
        paths.get_save_image_path(f"../{name}", str(tmp_path / "out"))


def test_pictures(paths: FolderPaths, tmp_path: Path) -> None:
    assert paths.get_annotated_filepath("in.png") == str(tmp_path / "input/in.png")
    assert paths.get_annotated_filepath("a b.png [output]") == str(tmp_path / "out/a b.png")
    assert paths.exists_annotated_filepath("in.png [input]")
    assert paths.output_directory == paths.get_output_directory() == str(tmp_path / "out")
    folder = str(tmp_path / "out/roses")
    saved = paths.get_save_image_path("roses/red_%width%", str(tmp_path / "out"), 64, 32)
    assert saved == (folder, "red_64", 1, "roses", "roses/red_64")
    Path(folder, "red_64_00007_.png").write_bytes(b"")
    Path(folder, "red_640_00009_.png").write_bytes(b"")
    assert paths.get_save_image_path("roses/red_64", str(tmp_path / "out"))[2] == 8
    assert os.listdir(tmp_path / "out") == ["roses"]


def test_a_list_of_files_remembers_its_folder() -> None:
    files = FileList(["a", "b"], ("loras",))
    assert ["None"] + files == ["None", "a", "b"]
    joined = ["None"] + files + ["last"] + FileList(["c"], ("vae",), ("fixed",))
    assert isinstance(joined, FileList)
    assert joined == ["None", "a", "b", "last", "c"]
    assert (joined.folders, joined.fixed) == (("loras", "vae"), ("None", "last", "fixed"))
    files.insert(0, "auto")
    assert files == ["auto", "a", "b"] and files.fixed == ("auto",)
