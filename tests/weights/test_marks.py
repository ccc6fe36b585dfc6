"""What a file says of its storage: read, or refused by name before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.weights.formats import Format, formats, register
from loraloom.weights.header import read_header
from loraloom.weights.tensor_file import TensorFile

F8 = torch.float8_e4m3fn
E4M3 = torch.randn(8, 64).to(F8)
BYTES = torch.randint(0, 256, (8, 64), dtype=torch.uint8)
INT8 = torch.randint(-127, 128, (8, 64), dtype=torch.int8)


def mark(**said: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)


def layer(weight: Tensor, **parts: Tensor) -> dict[str, Tensor]:
    return {"a.weight": weight, **{f"a.{name}": part for name, part in parts.items()}}


def written(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    return path


def test_the_registry_is_the_folder_and_imports_no_torch() -> None:
    code = (
        "import sys; from loraloom.weights.formats import formats; import loraloom.weights.storage as s;"
        "from pathlib import Path; files = {p.stem for p in Path(s.__path__[0]).glob('*.py')} - {'__init__'};"
        "assert len(formats()) == len(files) and 'torch' not in sys.modules"
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(source)})


def test_a_format_is_added_by_one_file_and_two_of_a_name_are_an_error() -> None:
    class Other(Format):
        name = "other"
        title = "other"
        said = ("int8_tensorwise",)

    with pytest.raises(ValueError, match="'int8_tensorwise'"):
        register([*formats().values(), Other()])
    Other.said = ("other_format",)
    assert "other" in register([*formats().values(), Other()])


REFUSED = {
    "unknown format": (
        layer(E4M3, comfy_quant=mark(format="nf3"), weight_scale=torch.ones(())),
        r"'a' is stored as 'nf3', a format that is not read here; known are .*int8_tensorwise",
    ),
    "no format": (layer(E4M3, comfy_quant=mark(), weight_scale=torch.ones(())), "is stored as 'None'"),
    "mark that is no JSON": (
        layer(E4M3, comfy_quant=torch.zeros(3, dtype=torch.uint8)), "a.comfy_quant is no JSON",
    ),
    "mark that is a list": (
        layer(E4M3, comfy_quant=torch.tensor(list(b"[1]"), dtype=torch.uint8)), "is no JSON object",
    ),
    "mark of another type": (layer(E4M3, comfy_quant=torch.zeros(3)), r"a.comfy_quant is F32 \[3\]"),
    "mark without a weight": (
        {"a.comfy_quant": mark(format="float8_e4m3fn"), "b": torch.ones(1)}, "its weight is missing",
    ),
    "claimed format that the tensor is not": (
        layer(E4M3, comfy_quant=mark(format="int8_tensorwise"), weight_scale=torch.ones(())),
        "stored as int8_tensorwise, but its weight is stored as F8_E4M3, not I8",
    ),
    "block scales of fp8": (
        layer(E4M3, weight_scale=torch.ones(8, 2)),
        r"weight_scale has shape \[8, 2\]; one number, or one for each of its 8 rows",
    ),
    "wrong number of rows": (
        layer(INT8, comfy_quant=mark(format="int8_tensorwise"), weight_scale=torch.ones(7, 1)),
        r"weight_scale has shape \[7, 1\]",
    ),
    "no scale": (
        layer(INT8, comfy_quant=mark(format="int8_tensorwise")), "its weight_scale is missing",
    ),
    "scale of another type": (
        layer(
            INT8, comfy_quant=mark(format="int8_tensorwise"), weight_scale=torch.ones(8, 1, dtype=torch.int32)
        ),
        "weight_scale is stored as I32, not F32 or F16 or BF16",
    ),
    "group that is no power of 4": (
        layer(
            INT8, weight_scale=torch.ones(8, 1),
            comfy_quant=mark(format="int8_tensorwise", convrot=True, convrot_groupsize=32),
        ),
        "convrot_groupsize is 32; a power of 4",
    ),
    "group that does not divide": (
        layer(
            INT8, weight_scale=torch.ones(8, 1),
            comfy_quant=mark(format="int8_tensorwise", convrot=True, convrot_groupsize=256),
        ),
        "64 columns are no multiple of its convrot_groupsize 256",
    ),
    "group that is no number": (
        layer(
            INT8, weight_scale=torch.ones(8, 1),
            comfy_quant=mark(format="int8_tensorwise", convrot=True, params={"convrot_groupsize": "64"}),
        ),
        "convrot_groupsize is '64'",
    ),
    "turned or not, in words": (
        layer(
            INT8, weight_scale=torch.ones(8, 1),
            comfy_quant=mark(format="int8_tensorwise", convrot="false", convrot_groupsize=64),
        ),
        "convrot is 'false'; true or false was expected",
    ),
    "no rows": (
        layer(INT8[:0], weight_scale=torch.ones(()), comfy_quant=mark(format="int8_tensorwise")),
        r"'a' is stored as int8_tensorwise, but its weight is empty: shape \[0, 64\]",
    ),
    "scales of blocks of another shape": (
        layer(E4M3, weight_scale=torch.zeros(8, 2, dtype=torch.uint8), comfy_quant=mark(format="mxfp8")),
        r"weight_scale has shape \[8, 2\]; \[128, 4\] was expected",
    ),
    "columns that fill no block": (
        layer(E4M3[:, :40].contiguous(), weight_scale=torch.zeros(128, 4, dtype=torch.uint8),
              comfy_quant=mark(format="mxfp8")),
        "40 columns are no multiple of 32",
    ),
    "nvfp4 without its second scale": (
        layer(BYTES, weight_scale=torch.zeros(128, 8).to(F8), comfy_quant=mark(format="nvfp4")),
        "its weight_scale_2 is missing",
    ),
    "nvfp4 with a scale for other columns": (
        layer(BYTES, weight_scale=torch.zeros(128, 8).to(F8), weight_scale_2=torch.ones(()),
              pre_quant_scale=torch.ones(64), comfy_quant=mark(format="nvfp4")),
        r"pre_quant_scale has shape \[64\]; \[128\] was expected",
    ),
    "w4a4 of a group that does not divide": (
        layer(BYTES, weight_scale=torch.ones(8), comfy_quant=mark(format="convrot_w4a4")),
        "128 columns are no multiple of its convrot_groupsize 256",
    ),
    "codes of 5 bits": (
        layer(BYTES, weight_s_rel=torch.ones(8, 7), weight_s_channel=torch.ones(8),
              comfy_quant=mark(format="asym_w4a8_int8", convrot_groupsize=64)),
        "64 bytes a row do not hold 112 codes of 4 or 6 bits",
    ),
    "a table of another size": (
        layer(BYTES, weight_s_rel=torch.ones(8, 8), weight_s_channel=torch.ones(8),
              weight_codebook=torch.ones(15),
              comfy_quant=mark(format="asym_w4a8_int8", convrot_groupsize=64)),
        r"weight_codebook has shape \[15\]",
    ),
    "experts": (
        layer(INT8, comfy_quant=mark(format="int8_tensorwise", num_experts=4), weight_scale=torch.ones(())),
        "several experts",
    ),
    "integers that nothing is said about": (layer(INT8), r"'a\.weight' is stored as I8, and neither a mark"),
    "nunchaku": (
        {"a.qweight": INT8, "a.wscales": torch.ones(1, 8), "a.proj_down": torch.ones(64, 4)},
        "SVDQuant.*take the int8 or fp8 file of the same model, or a GGUF",
    ),
    "GPTQ": (
        {"a.qweight": torch.zeros(8, 8, dtype=torch.int32), "a.qzeros": torch.zeros(1, 8, dtype=torch.int32),
         "a.scales": torch.ones(1, 64), "a.g_idx": torch.zeros(64, dtype=torch.int32)},
        "a GPTQ or AWQ file.*take the int8 or fp8 file",
    ),
    "AWQ": (
        {"a.qweight": torch.zeros(8, 8, dtype=torch.int32), "a.qzeros": torch.zeros(1, 8, dtype=torch.int32),
         "a.scales": torch.ones(1, 64)},
        "a GPTQ or AWQ file.*take the int8 or fp8 file",
    ),
    "bitsandbytes": (
        {"a.weight": torch.zeros(256, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(4)},
        "bitsandbytes.*take the int8 or fp8 file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, words = REFUSED[case]
    with pytest.raises(ModelFileError, match=rf"model\.safetensors: .*{words}"):
        read_header(written(tmp_path, tensors))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "_quantization_metadata is no JSON"),
        ("{}", "lists no layers"),
        ('{"layers": {"b": {"format": "float8_e4m3fn"}}}', "speaks of 'b' and 0 more layers, none of which"),
        ('{"layers": {"a": 3}}', "_quantization_metadata of a is no JSON object"),
        ('{"layers": {"a": {"format": "strange"}}}', "'a' is stored as 'strange'"),
        ('{"layers": {"a": {"format": "int8_tensorwise"}}}', "its weight is stored as F8_E4M3, not I8"),
    ],
)
def test_metadata_is_read_or_refused(text: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"a.weight": E4M3}, _quantization_metadata=text)
    with pytest.raises(ModelFileError, match=words):
        read_header(path)


def test_metadata_may_speak_of_more_than_the_file_holds(tmp_path: Path) -> None:
    text = json.dumps({"layers": {name: {"format": "float8_e5m2"} for name in ("a", "gone")}})
    path = written(tmp_path, layer(E4M3, weight_scale=torch.ones(())), _quantization_metadata=text)
    packing = read_header(path).tensors["a.weight"].packing
    assert packing is not None and packing.settings == {"format": "float8_e5m2"}


def test_scales_that_are_no_numbers_are_found_when_they_are_read(tmp_path: Path) -> None:
    scale = torch.ones(8, 1)
    scale[3] = torch.nan
    file = TensorFile(
        written(tmp_path, layer(INT8, comfy_quant=mark(format="int8_tensorwise"), weight_scale=scale))
    )
    with pytest.raises(
        ModelFileError,
        match=r"model\.safetensors: the weight 'a\.weight' is damaged: its scales .*as int8_tensorwise",
    ):
        file.read("a.weight")


@pytest.mark.parametrize(
    "tensors",
    [
        layer(
            E4M3, weight_scale=torch.full((128, 4), 255, dtype=torch.uint8), comfy_quant=mark(format="mxfp8")
        ),
        layer(
            BYTES,
            weight_scale=torch.full((128, 8), 127, dtype=torch.uint8).view(F8),
            weight_scale_2=torch.ones(()),
            comfy_quant=mark(format="nvfp4"),
        ),
    ],
    ids=["mxfp8", "nvfp4"],
)
def test_scales_of_blocks_that_are_no_numbers_are_found(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    file = TensorFile(written(tmp_path, tensors))
    with pytest.raises(
        ModelFileError, match=r"'a\.weight' is damaged: its (weight_scale|scales) .*\(stored as (mxfp8|nvfp4)"
    ):
        file.packed("a.weight")


def test_marks_and_scales_are_no_tensors_of_their_own(tmp_path: Path) -> None:
    tensors = layer(
        E4M3,
        comfy_quant=mark(format="float8_e4m3fn"),
        weight_scale=torch.ones(()),
        input_scale=torch.ones(()),
    )
    old = {"b.weight": E4M3.clone(), "b.scale_weight": torch.ones(1), "b.scale_input": torch.ones(1)}
    file = TensorFile(written(tmp_path, tensors | old | {"scaled_fp8": torch.zeros(2).to(F8)}))
    assert set(file.header.tensors) == {"a.weight", "b.weight"}
    packing = file.header.tensors["b.weight"].packing
    assert packing is not None and packing.settings["full_precision_matrix_mult"]
    assert file.header.tensors["a.weight"].nbytes == 8 * 64 + 4 + 4


def test_the_bytes_of_a_tokenizer_are_plain(tmp_path: Path) -> None:
    tensors = {"spiece_model": torch.zeros(7, dtype=torch.uint8), "m.weight": torch.ones(2, 2)}
    assert set(TensorFile(written(tmp_path, tensors)).header.tensors) == set(tensors)
