"""Published model files without their data: names, types and size are the real ones.

`tests/data/headers` says what each holds (written by scripts/header_fixtures.py).

    from tests.published import Fixture, write
    path = write(Fixture.named("flux1_dev"), tmp_path)   # 24 GB long, of which 0.1 MB are there
"""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

from loraloom.weights.header import BITS

FOLDER = Path(__file__).parent / "data" / "headers"
ONE = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}
"""1.0, as LoRA files keep alpha."""


@dataclass(frozen=True)
class Fixture:
    """See scripts/header_fixtures.py. tensors: name → (data type, shape)."""

    name: str
    kind: str
    family: str
    native: str
    source: str
    metadata: dict[str, str] | None
    comfy_quant: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @classmethod
    @cache
    def named(cls, name: str) -> Fixture:
        said = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
        tensors = {key: (dtype, tuple(shape)) for key, (dtype, shape) in said.pop("tensors").items()}
        del said["file"]
        return cls(name=name, tensors=tensors, **said)


def fixtures(kind: str) -> list[Fixture]:
    """All of a kind: "diffusion", "autoencoder", "text" or "lora"."""
    names = sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz"))
    return [found for found in map(Fixture.named, names) if found.kind == kind]


def write(fixture: Fixture, folder: Path) -> Path:
    """The file, sparse: of its data only what says something about the header is there, the rest is zero."""
    entries: dict[str, object] = {} if fixture.metadata is None else {"__metadata__": fixture.metadata}
    said: dict[int, bytes] = {}
    end = 0
    for name, (dtype, shape) in fixture.tensors.items():
        begin, end = end, end + prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        if name.endswith(".comfy_quant"):
            said[begin] = fixture.comfy_quant.encode()
        elif name.endswith(".alpha"):
            said[begin] = ONE[dtype]
    header = json.dumps(entries).encode()
    path = folder / f"{fixture.name}.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        start = file.tell()
        for offset, value in said.items():
            file.seek(start + offset)
            file.write(value)
        file.truncate(start + end)
    return path
