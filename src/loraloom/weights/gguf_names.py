"""Weights of GGUF files under the names that their safetensors files have.

Diffusion models keep their names. llama.cpp renames the weights of language models; here they have Hugging
Face's names again, and the rows of q and k of its "llama" architecture their order: llama.cpp puts the two
halves of each head in turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import cast

from loraloom.errors import ModelFileError
from loraloom.weights.formats import Packing, Shape, TensorInfo
from loraloom.weights.gguf_header import MAX_DIMENSIONS, TYPES, Block, GgufHeader

ARCHITECTURE = "general.architecture"
"""What a file says that it is, in the metadata."""

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""In front of a tensor's name: metadata with the shape of a tensor that was folded into rows of 256."""

PLAIN = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})

_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_T5 = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_T5_OUTSIDE = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}

_QWEN25_TOWER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn_out": "attn.proj",
    "attn_qkv": "attn.qkv",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN25_TOWER_OUTSIDE = {
    "v.post_ln": "visual.merger.ln_q",
    "v.patch_embd": "visual.patch_embed.proj",
    "mm.0": "visual.merger.mlp.0",
    "mm.2": "visual.merger.mlp.2",
}
_QWEN3_TOWER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn_out": "attn.proj",
    "attn_qkv": "attn.qkv",
    "ffn_up": "mlp.linear_fc1",
    "ffn_down": "mlp.linear_fc2",
}
_QWEN3_TOWER_OUTSIDE = {
    "v.post_ln": "model.visual.merger.norm",
    "v.patch_embd": "model.visual.patch_embed.proj",
    "v.position_embd": "model.visual.pos_embed",
    "mm.0": "model.visual.merger.linear_fc1",
    "mm.2": "model.visual.merger.linear_fc2",
}
_DEEPSTACK = re.compile(r"v\.deepstack\.(\d+)\.(norm|fc1|fc2)")

_LAYER = re.compile(r"(?P<stack>(?:enc\.|v\.)?blk)\.(?P<number>\d+)\.(?P<part>\w+)\.(?P<kind>weight|bias)")
_LEFT_OUT = re.compile(r"rope_freqs\.weight|dec\..*|tokenizer\..*")


def named_weights(header: GgufHeader) -> dict[str, TensorInfo]:
    """The file's weights by name. ModelFileError where its architecture has names that are not known here."""
    kind = str(header.fields.get(ARCHITECTURE, ""))
    rename = _qwen3_tower(header) if kind == "clip" and _is_qwen3(header) else _RENAMES.get(kind)
    if rename is None:
        if any(name.startswith(("blk.", "enc.blk.", "v.blk.")) for name in header.blocks):
            raise ModelFileError(
                f"a GGUF language model of the architecture {kind[:40]!r}, whose names are not known here;"
                f" known are {', '.join(sorted(_RENAMES))}"
            )
        return {name: _weight(header, name, block) for name, block in header.blocks.items()}
    blocks = dict(header.blocks)
    pieces = dict(_tower_pieces(blocks)) if kind == "clip" else {}
    pieces |= {
        name: _weight(header, name, block, _heads(header, kind, name))
        for name, block in blocks.items()
        if not _LEFT_OUT.fullmatch(name)
    }
    found: dict[str, TensorInfo] = {}
    for name, info in pieces.items():
        if rename(name) in found:
            raise ModelFileError(f"two of its tensors are {rename(name)!r}, one of them as {name!r}")
        found[rename(name)] = info
    return found


def _weight(header: GgufHeader, name: str, block: Block, heads: int = 0) -> TensorInfo:
    """One tensor; heads: of how many its rows are in llama.cpp's order."""
    shape = _original_shape(header, name, block.shape)
    if block.type in PLAIN and not heads:
        return TensorInfo(block.type, shape, block.begin, block.end)
    if heads and (not shape or shape != block.shape or shape[0] % (2 * heads)):
        raise ModelFileError(f"the tensor {name!r} has shape {list(shape)}, whose rows are not {heads} heads")
    if heads and len(shape) == 1 and block.type not in PLAIN:
        raise ModelFileError(f"the tensor {name!r} has one dimension and is stored as {block.type}")
    settings = {"format": block.type, "heads": heads} if heads else {"format": block.type}
    packing = Packing("gguf", {"weight": _bytes(block)}, settings)
    return TensorInfo(block.type, shape, block.begin, block.end, packing)


def _bytes(block: Block) -> TensorInfo:
    """The tensor's bytes: (rows, bytes of a row)."""
    rows = prod(block.shape[:-1]) if len(block.shape) > 1 else prod(block.shape)
    if block.type not in PLAIN and len(block.shape) < 2:
        rows = 1
    return TensorInfo("U8", (rows, (block.end - block.begin) // max(1, rows)), block.begin, block.end)


def _original_shape(header: GgufHeader, name: str, shape: Shape) -> Shape:
    original = header.fields.get(ORIGINAL_SHAPE + name)
    if original is None:
        return shape
    sizes = original if isinstance(original, list) else []
    if (
        len(sizes) > MAX_DIMENSIONS
        or not all(type(size) is int and size > 0 for size in sizes)
        or prod(cast("list[int]", sizes)) != prod(shape)
    ):
        raise ModelFileError(
            f"the metadata say that the tensor {name!r} was {str(original)[:80]}, and it holds {list(shape)}"
        )
    return tuple(cast("list[int]", sizes))


def _heads(header: GgufHeader, kind: str, name: str) -> int:
    """Of how many heads the rows are in llama.cpp's order; 0 where they are not."""
    part = _LAYER.fullmatch(name)
    if kind != "llama" or part is None or part["part"] not in ("attn_q", "attn_k"):
        return 0
    key = "head_count" if part["part"] == "attn_q" else "head_count_kv"
    said = header.fields.get(f"llama.attention.{key}", 32 if part["part"] == "attn_q" else 8)
    if type(said) is not int or not 0 < said < 1 << 16:
        raise ModelFileError(f"its llama.attention.{key} is {str(said)[:40]}")
    return said


def _tower_pieces(blocks: dict[str, Block]) -> Iterator[tuple[str, TensorInfo]]:
    """Weights of a picture encoder that llama.cpp keeps in parts (taken out of `blocks`): q, k and v of an
    attention, and the two frames of the patches."""
    for name in [name for name in blocks if ".attn_q." in name]:
        parts = [name.replace(".attn_q.", f".attn_{one}.") for one in "qkv"]
        if all(part in blocks for part in parts):
            pieces = [blocks.pop(part) for part in parts]
            whole = name.replace(".attn_q.", ".attn_qkv.")
            _must_be_parts(
                whole, pieces, all(p.shape[:1] and p.shape[1:] == pieces[0].shape[1:] for p in pieces)
            )
            shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
            yield whole, _pieced(pieces, shape, "rows")
    frames = ("v.patch_embd.weight", "v.patch_embd.weight.1")
    if all(frame in blocks for frame in frames):
        pieces = [blocks.pop(frame) for frame in frames]
        _must_be_parts(frames[0], pieces, len(pieces[0].shape) == 4 and pieces[0].shape == pieces[1].shape)
        rows, *rest = pieces[0].shape
        shape = (rows, rest[0], 2, *rest[1:])
        yield frames[0], _pieced(pieces, shape, "frames")


def _must_be_parts(whole: str, pieces: list[Block], fit: bool) -> None:
    """ModelFileError unless the shapes fit and all are of one type."""
    if not fit or len({piece.type for piece in pieces}) > 1:
        raise ModelFileError(
            f"the parts of {whole!r} are {', '.join(f'{p.type} {list(p.shape)}' for p in pieces)},"
            " which make no weight"
        )


def _pieced(pieces: list[Block], shape: Shape, joined: str) -> TensorInfo:
    """Several tensors of the file as one."""
    roles = ("weight", "second", "third")
    parts = {role: _bytes(piece) for role, piece in zip(roles, pieces, strict=False)}
    first = pieces[0]
    packing = Packing("gguf", parts, {"format": first.type, "joined": joined})
    return TensorInfo(first.type, shape, first.begin, first.end, packing)


def _renamed(name: str, stack: str, parts: Mapping[str, str], outside: Mapping[str, str]) -> str:
    """A llama.cpp name → Hugging Face's; names that are not in the tables stay."""
    layer = _LAYER.fullmatch(name)
    if layer is not None and layer["part"] in parts:
        return f"{stack}.{layer['number']}.{parts[layer['part']]}.{layer['kind']}"
    module, _, kind = name.rpartition(".")
    return f"{outside[module]}.{kind}" if module in outside else name


def _rename_llama(name: str) -> str:
    return _renamed(name, "model.layers", _LLAMA, _LLAMA_OUTSIDE)


def _rename_t5(name: str) -> str:
    return _renamed(name, "encoder.block", _T5, _T5_OUTSIDE)


def _rename_qwen3vl(name: str) -> str:
    """Qwen3-VL's files keep the language model below one name more."""
    renamed = _rename_llama(name)
    inner = renamed.removeprefix("model.")
    return renamed if inner == renamed else f"model.language_model.{inner}"


def _rename_qwen25_tower(name: str) -> str:
    return _renamed(name, "visual.blocks", _QWEN25_TOWER, _QWEN25_TOWER_OUTSIDE)


def _is_qwen3(header: GgufHeader) -> bool:
    return "v.position_embd.weight" in header.blocks


def _qwen3_tower(header: GgufHeader) -> Callable[[str], str]:
    """Names of Qwen3-VL's tower, whose taps llama.cpp counts by the layer that they stand behind."""
    taps = sorted({int(found[1]) for name in header.blocks if (found := _DEEPSTACK.match(name))})

    def rename(name: str) -> str:
        if tap := _DEEPSTACK.match(name):
            part = tap[2].replace("fc", "linear_fc")
            return f"model.visual.deepstack_merger_list.{taps.index(int(tap[1]))}.{part}{name[tap.end() :]}"
        return _renamed(name, "model.visual.blocks", _QWEN3_TOWER, _QWEN3_TOWER_OUTSIDE)

    return rename


_RENAMES: Mapping[str, Callable[[str], str]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen2vl", "qwen3"), _rename_llama),
    "qwen3vl": _rename_qwen3vl,
    **dict.fromkeys(("t5", "t5encoder"), _rename_t5),
    "clip": _rename_qwen25_tower,
}

BLOCK_SIZES = {name: (values, width) for name, values, width in TYPES.values()}
"""Name of a type → values in a block, bytes of a block."""


def companion_tower(names: list[str], encoder: str) -> str | None:
    """The file with the picture encoder that belongs to a GGUF language model: of the files beside it the one
    called "mmproj" whose name has the model's, without its type ("-Q4_K_M"); None where there is none."""
    stem = re.sub(r"[-_]?(?:ud-)?i?q\d_\w{1,8}$", "", encoder.lower().removesuffix(".gguf"))
    return next(
        (
            name
            for name in sorted(names)
            if name.lower().endswith(".gguf") and "mmproj" in name.lower() and stem in name.lower()
        ),
        None,
    )
