"""Headers: what is read, and every kind of file that is refused by name."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import ModelFileError
from loraloom.weights.header import read_header


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def test_reads_names_shapes_offsets_and_metadata(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "a.safetensors",
        {"__metadata__": {"title": "x"}, "w": entry(0, 24, [2, 3]), "s": entry(24, 28, [])},
        bytes(28),
    )
    header = read_header(path)
    assert header.metadata == {"title": "x"}
    assert header.tensors["w"].shape == (2, 3)
    assert header.tensors["s"].nbytes == 4
    assert header.file_size == header.data_start + 28
    assert header.identity.size == header.file_size


REFUSED_STARTS = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "zip": (b"PK\x03\x04" + bytes(64), "convert it"),
    "pickle": (b"\x80\x02}q\x00X\x06\x00\x00\x00weight" + bytes(64), "convert it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "archive"),
    "json": (b'{"error": "not found", "status": 404}', "JSON"),
    "short": (b"\x01\x02\x03", "cut short"),
    "no safetensors": (b"\xff" * 64, "not a safetensors file"),
    "cut in the header": (struct.pack("<Q", 1000) + b"{" * 100, "1008 bytes"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED_STARTS.values(), ids=REFUSED_STARTS)
def test_says_what_a_foreign_file_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        read_header(path)


REFUSED_HEADERS: dict[str, tuple[object, int, str]] = {
    "not JSON": (b"{nonsense}", 0, "damaged header"),
    "not UTF-8": (b'{"\xff": 1}', 0, "damaged header"),
    "nested too deep": (b'{"a":' * 20000 + b"1" + b"}" * 20000, 0, "damaged header"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", 0, "damaged header"),
    "a list": ([1, 2], 0, "object was expected"),
    "duplicate name": (b'{"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "w": 1}', 0, "twice"),
    "metadata no object": ({"__metadata__": 3}, 0, "__metadata__"),
    "metadata value no text": ({"__metadata__": {"a": 3}}, 0, "not a text"),
    "entry no object": ({"w": 3}, 0, "not described"),
    "unknown type": ({"w": entry(0, 4, [1], "F128")}, 4, "unknown data type"),
    "negative shape": ({"w": entry(0, 4, [-1])}, 4, "shape"),
    "boolean shape": (b'{"w": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}', 1, "shape"),
    "offsets turned": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, 4, "damaged header"),
    "huge beside nothing": ({"w": entry(0, 0, [0, 1 << 40, 1 << 40])}, 0, r"'w' has the shape \[0, 1099"),
    "size does not fit": ({"w": entry(0, 8, [1])}, 8, "claims 8"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "overlaps"),
    "hole": ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "hole"),
    "cut short": ({"w": entry(0, 400)}, 100, "cut short"),
    "too long": ({"w": entry(0, 4)}, 10, "too many"),
    "control character": ({"w\n\x1b[2J": entry(0, 4)}, 4, "unsafe"),
    "path in a name": ({"../../etc/passwd": entry(0, 4)}, 4, "unsafe"),
    "empty name": ({"": entry(0, 4)}, 4, "unsafe"),
    "surrogate": (b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', 0, "unsafe"),
    "name too long": ({"w" * 5000: entry(0, 4)}, 4, "unsafe"),
}


@pytest.mark.parametrize(("header", "size", "words"), REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
def test_refuses_damaged_headers(tmp_path: Path, header: object, size: int, words: str) -> None:
    path = file_of(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(ModelFileError, match=words):
        read_header(path)


def test_cut_short_names_both_sizes(tmp_path: Path) -> None:
    path = file_of(tmp_path / "m.safetensors", {"w": entry(0, 400)}, bytes(100))
    whole = path.stat().st_size + 300
    with pytest.raises(ModelFileError, match=f"{path.stat().st_size} of {whole} bytes"):
        read_header(path)


def test_refuses_directories_fifos_and_nothing(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("pipes are no files there")
    fifo = tmp_path / "pipe.safetensors"
    os.mkfifo(fifo)
    for path, words in (
        (tmp_path, "directory"),
        (fifo, "not a regular file"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(ModelFileError, match=words):
            read_header(path)


def test_refuses_a_header_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 26_000_000) + b" " * 100)
    with pytest.raises(ModelFileError, match="26000000"):
        read_header(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except ModelFileError as error:
        assert str(path) in str(error)
