"""Model files written in other storage formats, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.errors import InputError, ModelFileError
from loraloom.weights.formats import formats
from loraloom.weights.header import read_header
from loraloom.weights.quantise import quantise_file
from loraloom.weights.tensor_file import TensorFile
from tests import tiny_models as tiny

LAYER = "double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_flux(tmp_path_factory.mktemp("models") / "flux.safetensors", dtype=torch.bfloat16)


EXPECTED = {
    # largest relative error of a normal matrix, and how many times smaller the weight is than in bf16
    "int8": 0.02, "int8:convrot64": 0.015, "fp8": 0.04, "fp8:e5m2": 0.08, "mxfp8": 0.04, "nvfp4": 0.13,
    "convrot_w4a4:64": 0.2, "gguf:Q8_0": 0.01, "gguf:Q4_0": 0.15, "gguf:Q5_1": 0.06,
}  # fmt: skip


@pytest.mark.parametrize("to", EXPECTED)
def test_written_files_read_back_with_the_error_that_is_said(flux: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    written = quantise_file(flux, to, out, architecture="flux")
    before, after = TensorFile(flux), TensorFile(out)
    assert set(before.header.tensors) == set(after.header.tensors)
    losses = {layer.name: layer.relative for layer in written.layers}
    assert f"{LAYER}.weight" in losses and len(losses) >= 8
    assert not any(name.startswith(("img_in", "txt_in", "final_layer")) for name in losses)
    for name, info in before.header.tensors.items():
        assert after.header.tensors[name].shape == info.shape
        old, new = before.read(name, torch.float32), after.read(name, torch.float32)
        if name in losses:
            assert losses[name] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)
            assert 0 < losses[name] < EXPECTED[to]
        else:
            torch.testing.assert_close(
                new, old, rtol=2**-10, atol=2**-24
            )  # GGUF: bf16 → fp16 where 1-d: exact
    assert written.bytes_after == out.stat().st_size < written.bytes_before
    assert written.kept + len(losses) == len(before.header.tensors)


@pytest.mark.parametrize("to", ["int8:convrot64", "fp8", "nvfp4", "mxfp8"])
def test_marks_are_those_that_comfyui_reads(flux: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    quantise_file(flux, to, out)
    tensors = load_file(out)
    mark = json.loads(bytes(tensors[f"{LAYER}.comfy_quant"].tolist()))
    assert mark["format"] in formats()[to.split(":")[0]].said
    assert {str(tensors[f"{LAYER}.weight"].dtype), str(tensors[f"{LAYER}.weight_scale"].dtype)} == {
        "int8:convrot64": {"torch.int8", "torch.float32"},
        "fp8": {"torch.float8_e4m3fn", "torch.float32"},
        "nvfp4": {"torch.uint8", "torch.float8_e4m3fn"},
        "mxfp8": {"torch.float8_e4m3fn", "torch.uint8"},
    }[to]
    if to.startswith("int8"):
        assert mark == {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
        assert tensors[f"{LAYER}.weight_scale"].shape == (len(tensors[f"{LAYER}.weight"]), 1)
    with safe_open(out, "pt") as file:  # pyright: ignore[reportUnknownVariableType]
        assert file.metadata()["format"] == "pt"


def test_a_file_of_gguf_is_read_by_the_gguf_package(flux: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    out = tmp_path / "out.gguf"
    quantise_file(flux, "gguf:Q8_0", out, architecture="flux")
    reader = GGUFReader(out)
    field = reader.get_field("general.architecture")
    assert field is not None and field.contents() == "flux"
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == set(read_header(flux).tensors)
    weight = found[f"{LAYER}.weight"]
    assert weight.tensor_type.name == "Q8_0"
    assert tuple(reversed(weight.shape.tolist())) == read_header(flux).tensors[f"{LAYER}.weight"].shape


def test_quantised_files_come_back_and_change_format(flux: Path, tmp_path: Path) -> None:
    small, back, other = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    quantise_file(flux, "int8", small)
    written = quantise_file(small, "bf16", back)
    assert all(info.packing is None for info in read_header(back).tensors.values())
    weight = f"{LAYER}.weight"
    assert torch.equal(TensorFile(back).read(weight), TensorFile(small).read(weight, torch.bfloat16))
    assert max(layer.relative for layer in written.layers) < 2**-8
    quantise_file(small, "fp8", other)
    assert TensorFile(other).packed(weight).format.name == "fp8"


def test_only_the_network_of_a_checkpoint_is_quantised(tmp_path: Path) -> None:
    wide = torch.randn(64, 64)
    tensors = {
        "model.diffusion_model.blocks.0.to_q.weight": wide,
        "model.diffusion_model.blocks.0.norm1.weight": torch.randn(64),
        "model.diffusion_model.time_embed.0.weight": wide.clone(),
        "cond_stage_model.layers.0.q.weight": wide.clone(),
        "first_stage_model.number": torch.tensor([3]),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"modelspec.title": "mine"})
    written = quantise_file(tmp_path / "a.safetensors", "int8", tmp_path / "b.safetensors")
    assert [layer.name for layer in written.layers] == ["model.diffusion_model.blocks.0.to_q.weight"]
    new = TensorFile(tmp_path / "b.safetensors")
    assert new.header.metadata["modelspec.title"] == "mine"
    for name, values in tensors.items():
        if name != written.layers[0].name:
            assert torch.equal(new.read(name), values)


@pytest.mark.parametrize(
    "to", ["int9", "", "int8:convrot12", "svdquant", "gguf:Q4_K", "gguf:", "fp8:e3m4", "bf16:x"]
)
def test_targets_that_are_not_written_are_refused(flux: Path, to: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such storage format to write|are not written here"):
        quantise_file(flux, to, tmp_path / "out", architecture="flux")
    assert not (tmp_path / "out").exists()


def test_a_file_is_not_written_onto_itself_and_gguf_is_for_networks(flux: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the file itself"):
        quantise_file(flux, "int8", flux)
    with pytest.raises(InputError, match="of a diffusion model only"):
        quantise_file(flux, "gguf:Q8_0", tmp_path / "out")


@pytest.mark.parametrize("to", ["int8", "fp8", "gguf:Q8_0"])
def test_values_that_are_no_numbers_are_not_written(to: str, tmp_path: Path) -> None:
    broken = torch.randn(64, 64)
    broken[3, 5] = torch.inf
    save_file({"blocks.0.to_q.weight": broken}, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match=r"'blocks\.0\.to_q\.weight' holds values that are no numbers"):
        quantise_file(tmp_path / "a.safetensors", to, tmp_path / "out", architecture="x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_values_that_float16_cannot_hold_are_not_written_as_infinite(tmp_path: Path) -> None:
    wide = torch.randn(64, 64)
    wide[3, 5] = 1e5
    save_file({"first.weight": wide, "blocks.0.q.weight": torch.randn(64, 64)}, tmp_path / "a.safetensors")
    for to in ("fp16", "gguf:Q8_0"):
        with pytest.raises(ModelFileError, match=r"'first\.weight' holds 1e\+05, which float16 cannot hold"):
            quantise_file(tmp_path / "a.safetensors", to, tmp_path / "out", architecture="x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    written = quantise_file(tmp_path / "a.safetensors", "bf16", tmp_path / "out")
    assert {layer.name for layer in written.layers} == {"first.weight", "blocks.0.q.weight"}
    assert all(0 < layer.relative < 2**-8 for layer in written.layers) and written.kept == 0


@pytest.mark.parametrize("to", ["int8", "fp8", "nvfp4"])
def test_a_file_without_matrices_of_blocks_is_not_copied(tmp_path: Path, to: str) -> None:
    vae = tiny.write_vae(tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=f"nothing here is stored as {to}.*autoencoders are convolutions"):
        quantise_file(vae, to, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    assert quantise_file(vae, "bf16", tmp_path / "out.safetensors").layers
