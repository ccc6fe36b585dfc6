"""Pickles become safetensors, and hostile ones become errors: nothing runs, nothing is left half-written."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loraloom.cli.main import exit_code_of
from loraloom.errors import InputError, ModelFileError
from loraloom.weights import pickle_child, pickle_file
from loraloom.weights.header import read_header
from loraloom.weights.pickle_file import convert_pickle
from tests.weights.hostile_pickles import MARK, hostile, saved

HOSTILE = sorted(hostile(Path("/nowhere")))
CONFINED = ("reduce", "strides of nothing", "cut in an old file")
"""Those that the whole way is tried with: it takes seconds."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader says of them, here without its process, so that there are many."""
    monkeypatch.chdir(tmp_path)
    content, said = hostile(tmp_path)[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    out = io.BytesIO()
    with path.open("rb") as file, pytest.raises((pickle_child.Refused, MemoryError), match=said) as caught:
        pickle_child.convert(file, len(content), out)
    assert "weights_only" not in str(caught.value)
    assert out.getvalue() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", CONFINED)
def test_hostile_files_leave_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = hostile(tmp_path)[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"{said}|much more memory") as caught:
        convert_pickle(path)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def converted(folder: Path, name: str, found: Any, *, old: bool = False) -> dict[str, torch.Tensor]:
    path = folder / name
    path.write_bytes(saved(found, old=old))
    out = io.BytesIO()
    with path.open("rb") as file:
        report = pickle_child.convert(file, path.stat().st_size, out)
    (folder / "out.safetensors").write_bytes(out.getvalue())
    assert len(read_header(folder / "out.safetensors").tensors) == report["tensors"]
    return load_file(folder / "out.safetensors")


WEIGHT = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("name", "found", "names"),
    [
        ("sd.ckpt", {"state_dict": {"model.diffusion_model.x": WEIGHT}, "epoch": 3, "optimizer_states": [1]},
         ["model.diffusion_model.x"]),
        ("x4.pth", {"params_ema": OrderedDict(a=WEIGHT), "params": {"b": WEIGHT}}, ["a"]),
        ("x2.pth", {"params": {"conv_first.weight": WEIGHT}}, ["conv_first.weight"]),
        ("plain.pt", {"lora_unet_x.lora_up.weight": WEIGHT}, ["lora_unet_x.lora_up.weight"]),
        ("neg.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": WEIGHT}, "name": "neg"},
         ["emb_params"]),
        ("learned.bin", {"<cat>": WEIGHT[0]}, ["<cat>"]),
        ("sdxl.pt", {"clip_l": WEIGHT, "clip_g": WEIGHT}, ["clip_g", "clip_l"]),
        ("parameter.pt", {"a": torch.nn.Parameter(WEIGHT)}, ["a"]),
        ("nested.pt", {"unet": {"down": {"0": WEIGHT}}, "te": WEIGHT}, ["te", "unet.down.0"]),
        ("bare.pt", WEIGHT, ["emb_params"]),
    ],
)  # fmt: skip
def test_layouts_that_people_have(name: str, found: Any, names: list[str], old: bool, tmp_path: Path) -> None:
    tensors = converted(tmp_path, name, found, old=old)
    assert sorted(tensors) == names
    assert all(torch.equal(tensor.reshape(-1)[:4], WEIGHT[0]) for tensor in tensors.values())


def test_types_shapes_and_views(tmp_path: Path) -> None:
    types = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    )
    found = {str(kind): torch.ones(2, 3).to(kind) for kind in types}
    found |= {"scalar": torch.tensor(3.0), "none": torch.zeros(0, 4), "turned": WEIGHT.T, "row": WEIGHT[1]}
    found |= {"expanded": torch.ones(1).expand(5), "again": WEIGHT}
    tensors = converted(tmp_path, "a.pt", found)
    assert tensors.keys() == found.keys()
    for key, value in found.items():
        assert tensors[key].dtype == value.dtype and torch.equal(tensors[key], value)


def test_plain_values_become_metadata_and_the_rest_is_said(tmp_path: Path) -> None:
    found = {"state_dict": {"a": WEIGHT}, "epoch": 3, "name": "rose", "callbacks": {"x": [1]}, "lr": 0.5}
    (tmp_path / "a.ckpt").write_bytes(saved(found))
    done = convert_pickle(tmp_path / "a.ckpt")
    assert (done.left_out, done.left_out_count) == (("callbacks",), 1)
    with safe_open(done.path, "pt") as file:
        assert file.metadata() == {"epoch": "3", "name": "rose", "lr": "0.5", "format": "pt"}


def test_what_published_checkpoints_mention_is_left_out(tmp_path: Path) -> None:
    """A class of PyTorch Lightning as a key, and a number of numpy's: neither is imported."""
    import numpy as np

    (tmp_path / "a.ckpt").write_bytes(saved({"state_dict": {"a": WEIGHT}, "score": np.float64(3.5)}))
    assert convert_pickle(tmp_path / "a.ckpt").left_out == ("score",)


def test_a_file_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a": WEIGHT}))
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        convert_pickle(tmp_path / "a.pt")
    assert (tmp_path / "a.safetensors").read_text() == "mine"
    convert_pickle(tmp_path / "a.pt", force=True)
    assert list(load_file(tmp_path / "a.safetensors")) == ["a"]
    monkeypatch.setattr(pickle_file, "CHILD", tmp_path / "none.py")
    with pytest.raises(ModelFileError, match="ended with exit code"):
        convert_pickle(tmp_path / "a.pt", force=True)
    assert list(load_file(tmp_path / "a.safetensors")) == ["a"]


def test_names_that_no_file_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a\n..": WEIGHT}))
    with pytest.raises(ModelFileError, match=r"a\.pt: unsafe tensor name"):
        convert_pickle(tmp_path / "a.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_links_folders_and_names(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_bytes(saved({"a": WEIGHT}))
    (tmp_path / "a.bin").symlink_to(store / "blob")
    before = os.umask(0o027)
    try:
        done = convert_pickle(tmp_path / "a.bin")
    finally:
        os.umask(before)
    assert done.path == tmp_path / "a.safetensors"
    assert done.path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in store.iterdir()] == ["blob"]
    (tmp_path / "b.bin").symlink_to(store / "blob")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is there already"):
        convert_pickle(tmp_path / "b.bin")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "c.safetensors").write_bytes(saved({"a": WEIGHT}))
    with pytest.raises(InputError, match="over itself"):
        convert_pickle(tmp_path / "c.safetensors")
    for missing in (tmp_path / "none.pt", store):
        with pytest.raises(ModelFileError):
            convert_pickle(missing)


def test_a_reader_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a": WEIGHT}))
    with pytest.raises(ModelFileError, match="took more than"):
        convert_pickle(tmp_path / "a.pt", seconds=0.05)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


ATTEMPTS = (
    "os.system('touch {mark}')",
    "__import__('subprocess').run(['touch', '{mark}'])",
    "open('{mark}', 'w')",
    "os.open('{mark}', os.O_CREAT | os.O_WRONLY)",
    "os.remove('{source}')",
    "__import__('socket').socket()",
    "os.fork()",
    "os.environ['SECRET']",
    "bytearray(8 << 30)",
    "os.kill(os.getppid(), 9)",
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limits are those of POSIX systems")
def test_even_code_in_the_reader_could_not_do_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader with lines of its own where the file would be unpickled: what holds if torch ever fails."""
    source, mark = tmp_path / "a.pt", tmp_path / MARK
    source.write_bytes(saved({"a": WEIGHT}))
    monkeypatch.setenv("SECRET", "s")
    lines = [line.format(mark=mark, source=source) for line in ATTEMPTS]
    attempts = f"""
    done = []
    for line in {lines!r}:
        try:
            exec(line)
            done.append(line)
        except (PermissionError, KeyError, MemoryError, OSError):
            pass
    raise Refused(f"done: {{done}}")
"""
    before = "    tensors, texts, left = tensors_of("
    changed = pickle_file.CHILD.read_text("utf-8").replace(before, f"{attempts}{before}")
    monkeypatch.setattr(pickle_file, "CHILD", tmp_path / "child.py")
    (tmp_path / "child.py").write_text(changed, "utf-8")
    with pytest.raises(ModelFileError, match=r"done: \[\]$"):
        convert_pickle(source)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pt", "child.py"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a": WEIGHT}))
    (tmp_path / "b.pt").write_bytes(b"damaged")
    assert exit_code_of(["models", "convert", str(tmp_path / "b.pt"), str(tmp_path / "a.pt")]) == 2
    said = capsys.readouterr().err
    assert "b.pt: no pickle" in said and "a.safetensors: 1 tensors" in said
    assert (tmp_path / "a.safetensors").exists()
    assert exit_code_of(["models", "convert", str(tmp_path / "a.pt")]) == 2
    assert "--force" in capsys.readouterr().err
    assert exit_code_of(["models", "convert", "--force", "--json", str(tmp_path / "a.pt")]) == 0
    assert '"tensors": 1' in capsys.readouterr().out


def test_refusals_name_the_command(tmp_path: Path) -> None:
    path = tmp_path / "my model.ckpt"
    path.write_bytes(saved({"a": WEIGHT}))
    with pytest.raises(ModelFileError, match="loraloom models convert '.*my model.ckpt'"):
        read_header(path)
