"""Embedding files of every known layout, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.text.embeddings import EmbeddingFinder, read_embedding

TWO = torch.arange(8, dtype=torch.float32).reshape(2, 4)
ONE = torch.full((1, 4), 7.0)


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    (tmp_path / "embeddings/sub").mkdir(parents=True)
    return ModelFolders([tmp_path])


def write(folders: ModelFolders, name: str, tensors: dict[str, Tensor]) -> Path:
    path = folders.directories("embeddings")[0] / name
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"emb_params": TWO}, TWO),
        ({"emb_params": TWO.half()}, TWO),
        ({"<word>": TWO[0].clone()}, TWO[:1]),
        ({"clip_g": torch.zeros(2, 6), "clip_l": TWO}, TWO),
        ({"string_to_param.*": TWO}, TWO),
        ({"bundle_emb.w.string_to_param.*": TWO, "lora_unet_x.alpha": torch.tensor(1.0)}, TWO),
        ({"bundle_emb.v.clip_l": ONE, "bundle_emb.w.clip_l": TWO}, torch.cat([ONE, TWO])),
    ],
)
def test_layouts(folders: ModelFolders, tensors: dict[str, Tensor], expected: Tensor) -> None:
    vectors = read_embedding(write(folders, "e.safetensors", tensors), "clip_l")
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, expected)


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(2, 2, 2)}, {"a": torch.tensor(1.0)}])
def test_other_tensors_are_no_embedding(folders: ModelFolders, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ModelFileError, match="not an embedding"):
        read_embedding(write(folders, "e.safetensors", tensors), "clip_l")


@pytest.mark.parametrize("name", ["e", "e.safetensors", "deep", "sub/deep", "sub\\deep"])
def test_names_may_leave_out_suffix_and_subfolder(folders: ModelFolders, name: str) -> None:
    write(folders, "e.safetensors", {"x": TWO})
    write(folders, "sub/deep.safetensors", {"x": TWO})
    find = EmbeddingFinder(folders, "clip_l", 4)
    vectors = find(name)
    assert vectors is not None and len(vectors) == 2
    assert not find.warnings


@pytest.mark.parametrize("name", ["", "nothing", "../secret", "/etc/passwd"])
def test_what_is_not_there_is_none(folders: ModelFolders, name: str) -> None:
    write(folders, "../secret.safetensors", {"x": TWO})
    assert EmbeddingFinder(folders, "clip_l", 4)(name) is None


def test_pickles_are_refused_unopened(folders: ModelFolders) -> None:
    (folders.directories("embeddings")[0] / "old.pt").write_bytes(b"\x80\x02whatever")
    with pytest.raises(ModelFileError, match=r"old\.pt.*never loaded: .*loraloom models convert"):
        EmbeddingFinder(folders, "clip_l", 4)("old")


def test_a_pickles_name_means_what_it_was_converted_to(folders: ModelFolders) -> None:
    (folders.directories("embeddings")[0] / "old.pt").write_bytes(b"\x80\x02whatever")
    write(folders, "old.safetensors", {"emb_params": torch.ones(2, 4)})
    for name in ("old.pt", "old"):
        found = EmbeddingFinder(folders, "clip_l", 4)(name)
        assert found is not None and len(found) == 2


def test_another_models_width_is_explained_once(folders: ModelFolders) -> None:
    write(folders, "wide.safetensors", {"clip_g": torch.zeros(3, 6)})
    find = EmbeddingFinder(folders, "clip_l", 4)
    assert [len(v) for v in find("wide") or ()] == [6, 6, 6]
    find("wide")
    (warning,) = find.warnings
    assert warning.name == "wide" and "6 wide" in warning.message and "4 wide" in warning.message


def test_an_unknown_name_gets_the_nearest(folders: ModelFolders) -> None:
    write(folders, "easynegative.safetensors", {"x": TWO})
    assert "easynegative" in EmbeddingFinder(folders, "clip_l", 4).unknown("EasyNegativ").message
