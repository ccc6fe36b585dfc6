"""Reading and mapping tensors of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.errors import ModelFileError
from loraloom.weights.tensor_file import TensorFile

VALUES = torch.tensor([[0.0, 1.0, -2.0], [0.5, 96.0, -0.25]])
TYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.int64,
)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_is_read_and_mapped(tmp_path: Path, dtype: torch.dtype) -> None:
    wanted = VALUES.abs().to(dtype)
    save_file({"w": wanted}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    for found in (file.read("w"), file.map("w")):
        assert found.dtype == dtype
        assert torch.equal(found.double(), wanted.double())
    assert torch.equal(file.read("w", torch.float32), wanted.float())


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    save_file({"s": torch.tensor(3.0), "e": torch.empty(0, 4)}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.read("s").item() == file.map("s").item() == 3.0
    assert file.read("e").shape == file.map("e").shape == (0, 4)


def test_unaligned_tensors_are_copied(tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    header = json.dumps(entries).encode()
    (tmp_path / "b").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" + b"\x00\x00\x80\x3f")
    assert TensorFile(tmp_path / "b").map("b").item() == 1.0


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": VALUES}, path)
    before = path.read_bytes()
    TensorFile(path).map("w").zero_()
    assert path.read_bytes() == before
    assert torch.equal(TensorFile(path).read("w"), VALUES)


def test_a_replaced_file_stays_readable_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": VALUES}, path)
    file = TensorFile(path)
    save_file({"w": VALUES + 1}, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    assert torch.equal(file.read("w"), VALUES)
    assert TensorFile(path).identity != file.identity
    changed = TensorFile(path)
    with open(path, "ab") as handle:
        handle.write(b"more")
    with pytest.raises(ModelFileError, match="changed while in use"):
        changed.read("w")


def test_unknown_names_are_named(tmp_path: Path) -> None:
    save_file({"w": VALUES}, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="no tensor 'v'"):
        TensorFile(tmp_path / "a.safetensors").read("v")


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 1000])
def test_values_are_read_into_any_order(tmp_path: Path, stored: torch.dtype, rows: int) -> None:
    """Also in more pieces than one."""
    values = torch.randn(rows, 70, 3, 3).to(stored)
    save_file({"kernel": values}, tmp_path / "a.safetensors")
    out = torch.empty(values.shape, memory_format=torch.channels_last)
    TensorFile(tmp_path / "a.safetensors").read_into("kernel", out)
    assert torch.equal(out, values.float()) and out.is_contiguous(memory_format=torch.channels_last)


def test_what_is_mapped_outlives_the_mapping(tmp_path: Path) -> None:
    save_file({"w": VALUES}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    mapped = file.map("w")
    file.unmap()
    assert torch.equal(mapped, VALUES) and torch.equal(file.map("w"), VALUES)
    assert file.map("w").data_ptr() != mapped.data_ptr()


def test_a_file_that_another_thread_lets_go_of_is_mapped_nevertheless(tmp_path: Path) -> None:
    """The thread that measures a LoRA is done with a file just when a run begins to map it."""
    save_file({"w": VALUES}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")

    class LetGoAfterwards:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            file._mapping = None  # pyright: ignore[reportPrivateUsage]

    file._lock = LetGoAfterwards()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    assert torch.equal(file.map("w"), VALUES)
