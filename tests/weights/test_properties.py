"""Headers of model files and pickles, whatever stands in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import ModelFileError
from loraloom.weights.gguf_header import TYPES, read_gguf
from loraloom.weights.header import read_header
from loraloom.weights.pickle_child import Refused, check
from tests.weights.gguf_writer import write_gguf

NAMES = st.text("abcxyz_.0123456789", min_size=1, max_size=12).filter(lambda name: ".." not in name)
SIZES = st.lists(st.integers(1, 5), max_size=4).map(tuple)
BITS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}


@settings(max_examples=60)
@given(
    tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from([*BITS]), SIZES), min_size=1, max_size=5),
    metadata=st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=9), max_size=3),
)
def test_a_safetensors_header_says_what_was_written(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    said: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, (kind, shape) in tensors.items():
        begin, place = place, place + prod(shape) * BITS[kind]
        said[name] = {"dtype": kind, "shape": [*shape], "data_offsets": [begin, place]}
    text = json.dumps(said).encode()
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))
    header = read_header(path)
    assert header.metadata == metadata
    assert {name: info.shape for name, info in header.tensors.items()} == {
        n: s for n, (_, s) in tensors.items()
    }
    assert sum(info.nbytes for info in header.tensors.values()) == place
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(place + 1))
    with pytest.raises(ModelFileError):
        read_header(path)


KINDS = st.sampled_from(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K"])
VALUES: st.SearchStrategy[Any] = (
    st.text(st.characters(codec="utf-8"), max_size=9)
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats(width=32, allow_nan=False)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=1, max_size=3)
    | st.lists(st.integers(0, 9), max_size=3)
)
TENSORS = st.dictionaries(NAMES, st.tuples(KINDS, SIZES.filter(bool)), max_size=4)
FIELDS = st.dictionaries(NAMES.filter(lambda name: "__" not in name), VALUES, max_size=4)


@settings(max_examples=60)
@given(
    tensors=TENSORS,
    fields=FIELDS,
    damage=st.lists(st.tuples(st.integers(4, 400), st.integers(0, 255)), max_size=3),
)
def test_a_gguf_header_says_what_was_written_or_is_refused(
    tensors: dict[str, tuple[str, tuple[int, ...]]], fields: dict[str, Any],
    damage: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    sizes = {name: (kind, bytes_of) for _, (name, kind, bytes_of) in TYPES.items()}
    wide = {n: (kind, (*shape[:-1], shape[-1] * sizes[kind][0])) for n, (kind, shape) in tensors.items()}
    stored = {
        name: (kind, shape, bytes(prod(shape) // sizes[kind][0] * sizes[kind][1]))
        for name, (kind, shape) in wide.items()
    }
    path = write_gguf(tmp_path_factory.getbasetemp() / "written.gguf", stored, **fields)
    header = read_gguf(path)
    assert dict(header.fields) == fields
    assert {name: (block.type, block.shape) for name, block in header.blocks.items()} == wide
    assert all(block.end - block.begin == len(stored[name][2]) for name, block in header.blocks.items())
    whole = bytearray(path.read_bytes())
    for place, byte in damage:
        whole[place % len(whole)] = byte
    path.write_bytes(whole)
    try:
        read_gguf(path)
    except ModelFileError as error:
        assert str(path) in str(error)


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab."), inner, max_size=3),
    max_leaves=8,
)


class Bomb:
    """What removes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.rmdir, (self.folder,)


@settings(max_examples=60)
@given(plain=PLAIN, protocol=st.integers(2, 5))
def test_plain_data_passes_as_pickle_and_a_call_anywhere_in_it_is_named(plain: Any, protocol: int) -> None:
    data = pickle.dumps({"state": plain}, 2)
    assert check(io.BytesIO(data), len(data)) is False
    data = pickle.dumps({"state": [plain, {"a": (plain, Bomb("/nowhere"))}]}, protocol)
    with pytest.raises(Refused, match=f"{os.rmdir.__module__}.rmdir"):
        check(io.BytesIO(data), len(data))


@settings(max_examples=100)
@given(st.binary(max_size=80), st.sampled_from([b"\x80\x02", b"PK\x03\x04", b"\x80\x04\x95", b""]))
def test_any_bytes_are_a_pickle_or_refused(data: bytes, start: bytes) -> None:
    try:
        check(io.BytesIO(start + data), len(start + data))
    except Refused as refused:
        assert str(refused)
