"""GGUF files: blocks, names, shapes, and headers that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.weights.gguf_blocks import dequantised
from loraloom.weights.gguf_header import TYPES, read_gguf
from loraloom.weights.gguf_names import BLOCK_SIZES, PLAIN, companion_tower
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile
from tests.weights.gguf_writer import text, write_gguf

FIGURES = Path(__file__).parents[1] / "data" / "storage" / "gguf_blocks.npz"
MEASURED = (
    "Q8_0",
    "Q5_1",
    "Q5_0",
    "Q4_1",
    "Q4_0",
    "Q6_K",
    "Q5_K",
    "Q4_K",
    "Q3_K",
    "Q2_K",
    "IQ4_NL",
    "IQ4_XS",
)


@pytest.mark.parametrize("kind", MEASURED)
def test_blocks_have_comfyui_ggufs_values_bit_for_bit(kind: str) -> None:
    with np.load(FIGURES) as figures:
        stored, wanted = figures[f"{kind}|bytes"], figures[f"{kind}|values"]
    found = dequantised(torch.from_numpy(stored), kind)
    assert np.array_equal(found.numpy().view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("kind", sorted(set(BLOCK_SIZES) - PLAIN))
def test_every_type_has_the_values_of_the_gguf_package(kind: str) -> None:
    width = BLOCK_SIZES[kind][1]
    bits = np.random.default_rng(3).integers(0, 60, (40, width), np.uint8)  # small exponents: finite scales
    wanted = dequantize(bits, GGMLQuantizationType[kind])
    found = dequantised(torch.from_numpy(bits), kind).numpy()
    assert np.array_equal(found, wanted, equal_nan=True) and np.isfinite(wanted).mean() > 0.5


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    for number, (name, values, width) in TYPES.items():
        assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (values, width)
        assert GGMLQuantizationType[name] == number


def packed(values: Tensor, kind: str) -> tuple[str, tuple[int, ...], bytes]:
    flat = np.ascontiguousarray(values.numpy())
    if kind == "BF16":
        return kind, tuple(values.shape), values.bfloat16().view(torch.uint8).numpy().tobytes()
    return kind, tuple(values.shape), quantize(flat, GGMLQuantizationType[kind]).tobytes()


def as_stored(values: Tensor, kind: str) -> Tensor:
    return torch.from_numpy(
        dequantize(quantize(values.numpy(), GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
    )


def opened(path: Path) -> WeightSource:
    return WeightSource.of_file(TensorFile(path))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_native_names_and_shapes_in_torchs_order(kind: str, tmp_path: Path) -> None:
    values = torch.randn(6, 64)
    bias = torch.randn(6)
    source = opened(
        write_gguf(
            tmp_path / "a.gguf",
            {"double.weight": packed(values, kind), "double.bias": packed(bias, "F32")},
            general__architecture="flux",
        )
    )
    assert source.shapes == {"double.weight": (6, 64), "double.bias": (6,)}
    wanted = values.bfloat16().float() if kind == "BF16" else as_stored(values, kind)
    assert torch.equal(source.read("double.weight").float(), wanted)
    assert torch.equal(source.read("double.bias"), bias)
    whole = source.packed("double.weight", mapped=True)
    assert (whole is None) is (kind in PLAIN)
    if whole is not None:
        assert torch.equal(whole.rows([(4, 6), (1, 2)]).widened(torch.float32), wanted[[4, 5, 1]])
        assert torch.equal(whole.take(torch.tensor([[5], [0]]), torch.float32)[:, 0], wanted[[5, 0]])
        assert whole.nbytes == source.stored_bytes("double.weight")
        x = torch.randn(3, 64)
        torch.testing.assert_close(whole.product(x, native=True), x @ wanted.T)


@pytest.mark.parametrize("shape", [(8, 4, 4, 4), (32, 2, 3, 3)], ids=["rows of blocks", "blocks over rows"])
def test_folded_tensors_have_their_original_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = torch.randn(shape)
    folded = values.reshape(-1, 64)
    name = "input_blocks.0.0.weight"
    source = opened(
        write_gguf(
            tmp_path / "a.gguf",
            {name: packed(folded, "Q8_0")},
            general__architecture="sd1",
            **{f"comfy.gguf.orig_shape.{name}": list(shape)},
        )
    )
    wanted = as_stored(folded, "Q8_0").reshape(shape)
    assert torch.equal(source.read(name), wanted)
    whole = source.packed(name)
    assert whole is not None
    assert torch.equal(whole.rows([(3, 7)]).widened(torch.float32), wanted[3:7])
    assert torch.equal(whole.take(torch.tensor([2, 0]), torch.float32), wanted[[2, 0]])


def interleaved(values: Tensor, heads: int) -> Tensor:
    """What llama.cpp's converter does to q and k: the halves of each head in turns."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_llama_has_hugging_faces_names_and_order_again(kind: str, tmp_path: Path) -> None:
    q, k = torch.randn(64, 32), torch.randn(32, 32)
    tensors = {
        "token_embd.weight": packed(torch.randn(10, 32), kind),
        "blk.0.attn_q.weight": packed(interleaved(q, 8), kind),
        "blk.0.attn_k.weight": packed(interleaved(k, 4), kind),
        "blk.0.attn_norm.weight": packed(torch.randn(32), "F32"),
        "blk.0.ffn_down.weight": packed(torch.randn(32, 64), kind),
        "output_norm.weight": packed(torch.randn(32), "F32"),
        "rope_freqs.weight": packed(torch.randn(4), "F32"),
    }
    heads: dict[str, object] = {"llama.attention.head_count": 8, "llama.attention.head_count_kv": 4}
    source = opened(write_gguf(tmp_path / "a.gguf", tensors, general__architecture="llama", **heads))
    assert set(source.shapes) == {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
    }
    for name, values in (("q_proj", q), ("k_proj", k)):
        assert torch.equal(source.read(f"model.layers.0.self_attn.{name}.weight"), as_stored(values, kind))


def test_t5_has_hugging_faces_names_again(tmp_path: Path) -> None:
    names = {
        "token_embd": "shared",
        "enc.output_norm": "encoder.final_layer_norm",
        "enc.blk.3.attn_rel_b": "encoder.block.3.layer.0.SelfAttention.relative_attention_bias",
        "enc.blk.3.attn_o": "encoder.block.3.layer.0.SelfAttention.o",
        "enc.blk.3.ffn_gate": "encoder.block.3.layer.1.DenseReluDense.wi_0",
        "enc.blk.3.ffn_up": "encoder.block.3.layer.1.DenseReluDense.wi_1",
        "enc.blk.3.ffn_down": "encoder.block.3.layer.1.DenseReluDense.wo",
        "enc.blk.3.ffn_norm": "encoder.block.3.layer.1.layer_norm",
    }
    tensors = {f"{name}.weight": packed(torch.randn(4, 32), "Q8_0") for name in names}
    source = opened(write_gguf(tmp_path / "a.gguf", tensors, general__architecture="t5encoder"))
    assert set(source.shapes) == {f"{name}.weight" for name in names.values()}


def test_a_tower_has_its_parts_put_together(tmp_path: Path) -> None:
    q, k, v = torch.randn(3, 8, 32).unbind()
    frames = torch.randn(2, 8, 3, 4, 4)
    tensors = {f"v.blk.0.attn_{n}.weight": packed(p, "F16") for n, p in zip("qkv", (q, k, v), strict=True)}
    tensors |= {
        f"v.blk.0.attn_{n}.bias": packed(torch.full((8,), float(i)), "F32") for i, n in enumerate("qkv")
    }
    tensors |= {
        "v.patch_embd.weight": packed(frames[0], "F16"),
        "v.patch_embd.weight.1": packed(frames[1], "F16"),
        "v.post_ln.weight": packed(torch.ones(8), "F32"),
        "mm.0.weight": packed(torch.randn(4, 32), "F16"),
    }
    source = opened(write_gguf(tmp_path / "mmproj.gguf", tensors, general__architecture="clip"))
    assert set(source.shapes) == {
        "visual.blocks.0.attn.qkv.weight",
        "visual.blocks.0.attn.qkv.bias",
        "visual.patch_embed.proj.weight",
        "visual.merger.ln_q.weight",
        "visual.merger.mlp.0.weight",
    }
    assert torch.equal(source.read("visual.blocks.0.attn.qkv.weight"), torch.cat([q, k, v]).half().float())
    wanted = torch.tensor([0.0, 1, 2]).repeat_interleave(8)
    assert torch.equal(source.read("visual.blocks.0.attn.qkv.bias"), wanted)
    patches = source.read("visual.patch_embed.proj.weight")
    assert torch.equal(patches, torch.stack([frames[0], frames[1]], 2).half().float())


def test_qwen3_vl_has_the_names_of_its_own_file(tmp_path: Path) -> None:
    tensors = {"blk.1.attn_q_norm.weight": packed(torch.ones(8), "F32")}
    model = opened(write_gguf(tmp_path / "a.gguf", tensors, general__architecture="qwen3vl"))
    assert set(model.shapes) == {"model.language_model.layers.1.self_attn.q_norm.weight"}
    tower = {
        "v.position_embd.weight": packed(torch.ones(4, 8), "F32"),
        "v.deepstack.16.fc1.weight": packed(torch.ones(4, 8), "F32"),
        "v.deepstack.8.norm.weight": packed(torch.ones(8), "F32"),
        "v.blk.0.ffn_up.weight": packed(torch.ones(4, 8), "F32"),
    }
    assert set(opened(write_gguf(tmp_path / "b.gguf", tower, general__architecture="clip")).shapes) == {
        "model.visual.pos_embed.weight",
        "model.visual.deepstack_merger_list.1.linear_fc1.weight",
        "model.visual.deepstack_merger_list.0.norm.weight",
        "model.visual.blocks.0.mlp.linear_fc1.weight",
    }


def test_the_tower_of_a_language_model_is_found_beside_it() -> None:
    names = [
        "other-mmproj.gguf",
        "qwen2.5-vl-7b-instruct-mmproj-bf16.gguf",
        "qwen2.5-vl-7b-instruct-Q4_K_M.gguf",
    ]
    assert companion_tower(names, "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf") == names[1]
    assert companion_tower(names, "llama-UD-Q4_K_XL.gguf") is None


def test_a_tokenizers_data_are_there(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf", {"a": packed(torch.ones(2), "F32")},
        tokenizer__ggml__tokens=["<s>", "é"], tokenizer__ggml__token_type=[3, 1],
        tokenizer__ggml__eos_token_id=1,
    )  # fmt: skip
    fields = read_gguf(path).fields
    assert fields["tokenizer.ggml.tokens"] == ["<s>", "é"]
    assert fields["tokenizer.ggml.token_type"] == [3, 1] and fields["tokenizer.ggml.eos_token_id"] == 1


GOOD = {"a.weight": packed(torch.randn(4, 64), "Q8_0")}


def damaged(change: str, path: Path) -> bytes:
    """A good file with one thing wrong."""
    data = write_gguf(path, GOOD, general__architecture="flux").read_bytes()
    head = struct.calcsize("<4sIQQ")
    kinds = {
        "version": data[:4] + struct.pack("<I", 1) + data[8:],
        "tensors": data[:8] + struct.pack("<Q", 1 << 40) + data[16:],
        "fields": data[:16] + struct.pack("<Q", 1 << 40) + data[24:],
        "text": data[:head] + struct.pack("<Q", 1 << 50) + data[head + 8 :],
        "long text": data[:head] + struct.pack("<Q", 60_000) + data[head + 8 :],
        "cut header": data[: head + 30],
        "cut data": data[:-60],
        "list": data.replace(text("flux"), text("flux")).replace(
            struct.pack("<I", 8) + text("flux"), struct.pack("<IIQ", 9, 8, 1 << 60)
        ),
        "cut list": data.replace(struct.pack("<I", 8) + text("flux"), struct.pack("<IIQ", 9, 8, 1 << 20)),
        "kind of value": data.replace(
            struct.pack("<I", 8) + text("flux"), struct.pack("<I", 77) + text("flux")
        ),
        "type": data.replace(struct.pack("<2QI", 64, 4, 8), struct.pack("<2QI", 64, 4, 99)),
        "row": data.replace(struct.pack("<2QI", 64, 4, 8), struct.pack("<2QI", 60, 4, 8)),
        "dimensions": data.replace(struct.pack("<I2Q", 2, 64, 4), struct.pack("<I2Q", 500, 64, 4)),
        "huge": data.replace(struct.pack("<2QI", 64, 4, 8), struct.pack("<2QI", 1 << 61, 1 << 61, 8)),
        "nothing": data.replace(struct.pack("<2QI", 64, 4, 8), struct.pack("<2QI", 64, 0, 8)),
        "huge beside nothing": data.replace(
            struct.pack("<2QI", 64, 4, 8), struct.pack("<2QI", 0, (1 << 64) - 1, 8)
        ),
        "name": data.replace(b"a.weight", b"a..\x00ight"),
        "place": data.replace(struct.pack("<IQ", 8, 0), struct.pack("<IQ", 8, 5)),
    }
    return kinds[change]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("version", "GGUF of version 1; 2 and 3 are read"),
        ("tensors", "claims 1099511627776 tensors"),
        ("fields", "claims 1099511627776 metadata fields"),
        ("text", "claims 1125899906842624 bytes"),
        ("long text", "cut short inside its GGUF header"),
        ("cut header", "cut short inside its GGUF header"),
        ("cut data", "cut short: the tensor 'a.weight' ends"),
        ("list", "claims 1152921504606846976 values of a metadata field"),
        ("cut list", "cut short inside its GGUF header"),
        ("kind of value", "unknown type 77"),
        ("type", "has the GGUF type 99, which is not read here"),
        ("row", "rows of 60 values of the tensor 'a.weight' are no whole blocks of Q8_0"),
        ("dimensions", "has 500 dimensions"),
        ("huge", "cut short"),
        ("nothing", r"'a.weight' has the shape \[0, 64\]"),
        ("huge beside nothing", r"'a.weight' has the shape \[18446744073709551615, 0\]"),
        ("name", "unsafe tensor name"),
        ("place", "at no multiple of 32"),
    ],
)
def test_headers_that_lie_are_named(change: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged(change, path))
    with pytest.raises(ModelFileError, match=rf"model\.gguf: .*{words}"):
        TensorFile(path)


@pytest.mark.parametrize("length", range(0, 200, 7))
def test_every_cut_is_a_clear_error(length: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", GOOD, general__architecture="flux")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelFileError):
        TensorFile(path)


@pytest.mark.parametrize(
    ("tensors", "fields", "words"),
    [
        (GOOD, {"comfy.gguf.orig_shape.a.weight": [3, 5]}, r"was \[3, 5\], and it holds \[4, 64\]"),
        (
            {"blk.0.attn_q.weight": GOOD["a.weight"]},
            {"general.architecture": "gemma9"},
            "architecture 'gemma9'",
        ),
        ({"blk.0.attn_q.weight": GOOD["a.weight"]}, {"general.architecture": "llama"}, "not 32 heads"),
    ],
    ids=["shape", "architecture", "heads"],
)
def test_metadata_that_lie_are_named(
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    fields: dict[str, object],
    words: str,
    tmp_path: Path,
) -> None:
    path = write_gguf(tmp_path / "model.gguf", tensors, **fields)
    with pytest.raises(ModelFileError, match=rf"model\.gguf: .*{words}"):
        TensorFile(path)


Q8 = packed(torch.randn(64, 32), "Q8_0")
HEADS: dict[str, object] = {"llama.attention.head_count": 2}
ORIGINAL = "comfy.gguf.orig_shape.blk.0.attn_q.weight"
FRAMES = ("v.patch_embd.weight", "v.patch_embd.weight.1")
MISFITS: dict[str, tuple[str, dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, object], str]] = {
    "q that is one number": (
        "llama",
        {"blk.0.attn_q.weight": packed(torch.ones(()), "F32")}, HEADS, r"shape \[\], whose rows are not 2",
    ),
    "q folded": (
        "llama",
        {"blk.0.attn_q.weight": Q8}, {**HEADS, ORIGINAL: [128, 16]}, r"shape \[128, 16\], whose rows",
    ),
    "a bias of q in blocks": (
        "llama",
        {"blk.0.attn_q.bias": ("Q8_0", (64,), bytes(68))}, HEADS,
        "one dimension and is stored as Q8_0",
    ),
    "two names for one weight": (
        "qwen3",
        {"blk.0.attn_q.weight": Q8, "model.layers.0.self_attn.q_proj.weight": Q8}, {},
        r"two of its tensors are 'model\.layers\.0\.self_attn\.q_proj\.weight'",
    ),
    "parts that are numbers": (
        "clip",
        {f"v.blk.0.attn_{part}.weight": packed(torch.ones(()), "F32") for part in "qkv"}, {},
        r"parts of 'v\.blk\.0\.attn_qkv\.weight' are F32 \[\]",
    ),
    "parts of several types": (
        "clip",
        {f"v.blk.0.attn_{part}.weight": packed(torch.ones(4, 32), kind)
         for part, kind in zip("qkv", ("F32", "Q8_0", "F32"), strict=True)}, {},
        r"are F32 \[4, 32\], Q8_0 \[4, 32\], F32",
    ),
    "frames without a picture": (
        "clip",
        {name: packed(torch.ones(4), "F32") for name in FRAMES}, {}, r"are F32 \[4\], F32 \[4\], which",
    ),
    "frames of two sizes": (
        "clip",
        {name: packed(torch.ones(4 + number, 3, 2, 2), "F32") for number, name in enumerate(FRAMES)},
        {},
        r"F32 \[4, 3, 2, 2\], F32 \[5, 3, 2, 2\]",
    ),
    "too many dimensions": (
        "flux",
        {"a": packed(torch.ones(4), "F32")}, {"comfy.gguf.orig_shape.a": [4, *[1] * 99]},
        "the metadata say that the tensor 'a' was",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_make_no_weight_are_named(case: str, tmp_path: Path) -> None:
    kind, tensors, said, words = MISFITS[case]
    path = write_gguf(tmp_path / "model.gguf", tensors, general__architecture=kind, **said)
    with pytest.raises(ModelFileError, match=rf"model\.gguf: .*{words}"):
        TensorFile(path)


def test_plain_types_are_put_in_order_too(tmp_path: Path) -> None:
    values = torch.arange(64).reshape(8, 8)
    tensors = {
        "blk.0.attn_q.weight": ("I8", (8, 8), interleaved(values, 2).to(torch.int8).numpy().tobytes()),
        "blk.1.attn_q.weight": ("F64", (8, 8), interleaved(values, 2).double().numpy().tobytes()),
    }
    source = opened(write_gguf(tmp_path / "a.gguf", tensors, general__architecture="llama", **HEADS))
    for name in source.shapes:
        assert torch.equal(source.read(name), values.float())


def test_lists_are_counted_over_all_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.weights.gguf_header.MAX_ITEMS", 5)
    lists = {"one": [1, 2, 3], "two": ["a", "b", "c"]}
    read_gguf(write_gguf(tmp_path / "a.gguf", GOOD, one=lists["one"]))
    with pytest.raises(ModelFileError, match="its metadata lists hold more than 5 values"):
        read_gguf(write_gguf(tmp_path / "a.gguf", GOOD, **lists))
