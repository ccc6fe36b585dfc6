"""Native names over files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.errors import ModelFileError
from loraloom.weights.formats import formats
from loraloom.weights.source import Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile
from tests.weights.test_marks import mark

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


@pytest.mark.parametrize("name", ["fp8", "int8", "mxfp8", "nvfp4"])
def test_quantised_pieces_are_one_weight_where_their_formats_agree(tmp_path: Path, name: str) -> None:
    """Layers that one file keeps apart and the network as one: each with its own scales."""
    values = {key: torch.randn(32, 64) * size for key, size in (("q", 1.0), ("k", 7.0))}
    tensors: dict[str, torch.Tensor] = {"plain.weight": torch.randn(32, 64)}
    for key, value in values.items():
        made = formats()[name].pack(value, "")
        assert made is not None
        tensors |= {f"{key}.{part}": tensor for part, tensor in made[0].items()}
        tensors[f"{key}.comfy_quant"] = mark(**made[1])
    save_file(tensors, tmp_path / "f")
    file = TensorFile(tmp_path / "f")
    pieces = {key: Piece(file, f"{key}.weight") for key in ("q", "k", "plain")}
    source = WeightSource(
        {
            "fused": (pieces["q"], pieces["k"]),
            "some rows": (Piece(file, "q.weight", (4, 9)),),
            "half quantised": (pieces["q"], pieces["plain"]),
            "turned": (Piece(file, "q.weight", transposed=True),),
        }
    )
    wanted = torch.cat([file.read("q.weight"), file.read("k.weight")])
    packed = source.packed("fused")
    assert packed is not None and source.stays_packed("fused")
    assert torch.equal(packed.widened(torch.float32), wanted)
    assert torch.equal(source.read("fused"), wanted)
    x = torch.randn(3, 64)
    torch.testing.assert_close(packed.product(x, native=False), x @ wanted.T, rtol=1e-4, atol=1e-3)
    rows = source.packed("some rows")
    assert rows is not None and torch.equal(rows.widened(torch.float32), wanted[4:9])
    for native in ("half quantised", "turned"):
        assert source.is_packed(native) and not source.stays_packed(native)
        assert source.packed(native) is None
    mixed = source.read("half quantised")
    assert torch.equal(mixed, torch.cat([file.read("q.weight"), tensors["plain.weight"]]))
    assert torch.equal(source.read("turned"), file.read("q.weight").T)
