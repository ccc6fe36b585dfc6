"""Native names over files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.errors import ModelFileError
from loraloom.weights.source import Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile

W = torch.arange(12.0).reshape(4, 3)


def test_prefix_and_rename(tmp_path: Path) -> None:
    save_file({"m.a.weight": W, "m.b": W + 1, "other": W + 2}, tmp_path / "f")
    source = WeightSource.of_file(
        TensorFile(tmp_path / "f"), "m.", lambda name: None if name == "b" else name.upper()
    )
    assert dict(source.shapes) == {"A.WEIGHT": (4, 3)}
    assert torch.equal(source.read("A.WEIGHT"), W)
    with pytest.raises(ModelFileError, match=r"'b' is missing in .*f"):
        source.read("b")


def test_pieces_are_cut_transposed_and_joined(tmp_path: Path) -> None:
    save_file({"fused": W, "tail": W[:1].clone()}, tmp_path / "f")
    file = TensorFile(tmp_path / "f")
    source = WeightSource(
        {
            "rows": (Piece(file, "fused", (1, 3)),),
            "turned": (Piece(file, "fused", transposed=True),),
            "joined": (Piece(file, "fused", (0, 2)), Piece(file, "tail")),
        }
    )
    expected = {"rows": W[1:3], "turned": W.T, "joined": torch.cat([W[:2], W[:1]])}
    for name, values in expected.items():
        assert source.shapes[name] == tuple(values.shape)
        assert torch.equal(source.read(name), values)
        assert torch.equal(source.map(name), values)


def test_identity_is_that_of_the_content(tmp_path: Path) -> None:
    save_file({"m.w": W, "w": W + 3}, tmp_path / "f")
    one, two = (WeightSource.of_file(TensorFile(tmp_path / "f"), "m.") for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != WeightSource.of_file(TensorFile(tmp_path / "f"), "")
    save_file({"m.w": W, "w": W + 1}, tmp_path / "g")
    assert one != WeightSource.of_file(TensorFile(tmp_path / "g"), "m.")


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(
    "scale", [torch.tensor([0.5]), torch.tensor([1.0, 2.0, 3.0, 4.0])], ids=["one", "rows"]
)
def test_scaled_storage_is_multiplied_out(tmp_path: Path, suffix: str, scale: torch.Tensor) -> None:
    stored = W.to(torch.float8_e4m3fn)
    marker = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file({"a.weight": stored, f"a.{suffix}": scale, "scaled_fp8": marker}, tmp_path / "f")
    source = WeightSource.of_file(TensorFile(tmp_path / "f"))
    assert list(source.shapes) == ["a.weight"]
    assert torch.equal(source.read("a.weight"), stored.float() * scale.reshape(-1, 1))
    assert torch.equal(source.map("a.weight"), source.read("a.weight"))
    for mapped in (False, True):
        packed = source.packed("a.weight", mapped=mapped)
        assert packed is not None and torch.equal(packed.parts["weight"].float(), stored.float())
    assert torch.equal(source.stored("a.weight").float(), stored.float())
    assert torch.equal(WeightSource.joined([source]).read("a.weight"), source.read("a.weight"))
