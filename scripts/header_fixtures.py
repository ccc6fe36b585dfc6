"""Writes tests/data/headers: what published, full-size model files hold, as their headers say.

usage: PYTHONPATH=.:src .venv/bin/python scripts/header_fixtures.py          writes them all
       PYTHONPATH=.:src .venv/bin/python scripts/header_fixtures.py --check  compares, and writes nothing

Each fixture is a gzipped JSON object: file (its published name), kind (diffusion, autoencoder, text or lora),
family, native (see `Published`), source (where the fact comes from), metadata, comfy_quant (what every tensor
of that name says), and tensors {name: [data type, shape]}.

Names and shapes come from the tables and layouts in `headers/`, or from diffusers' classes built without
memory. What makes them facts is the size of the published file: it is computed here from names, types and
shapes, header included, and must agree to the byte, or but for `Published.unexplained` bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from math import prod
from pathlib import Path

from headers.components import AUTOENCODERS, TEXT
from headers.diffusion import DIFFUSION
from headers.loras import LORAS
from headers.published import Published

from loraloom.weights.header import BITS

KINDS = {"diffusion": DIFFUSION, "autoencoder": AUTOENCODERS, "text": TEXT, "lora": LORAS}

FOLDER = Path(__file__).parent.parent / "tests/data/headers"


def header_text(published: Published) -> tuple[int, int]:
    """Bytes of the file's header, and of its data."""
    entries: dict[str, object] = {}
    if published.metadata is not None:
        entries["__metadata__"] = dict(published.metadata)
    tensors = published.tensors()
    end = 0
    for name in sorted(
        tensors, key=lambda name: (0 if published.old_writer else order(tensors[name][0]), name)
    ):
        dtype, shape = tensors[name]
        begin, end = end, end + prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(entries, separators=(",", ":")).encode())
    return length if published.old_writer else length + -length % 8, end


def order(dtype: str) -> int:
    """Where safetensors puts tensors of a type: those of wide elements first."""
    types = ("I64", "F32", "I32", "BF16", "F16", "F8_E4M3", "I8", "U8")
    return types.index(dtype)


def check_size(published: Published) -> str:
    """What the published size says, in words; an error where it does not agree."""
    if not published.size:
        return ""
    header, data = header_text(published)
    rest = published.size - 8 - header - data
    if rest != published.unexplained:
        raise ValueError(
            f"{published.name}: {rest} bytes differ from the size published, not {published.unexplained}"
        )
    agrees = f"names, types and shapes make the published size, {published.size} bytes, to the byte"
    return agrees if not rest else f"{agrees} but for {rest} bytes of metadata that are not known here"


def fixture(kind: str, published: Published) -> bytes:
    """The fixture's gzipped JSON, the same each time."""
    said = (check_size(published), published.note)
    tensors = published.tensors()
    content = {
        "file": published.file,
        "kind": kind,
        "family": published.family,
        "native": published.native,
        "source": "; ".join(part for part in said if part),
        "metadata": None if published.metadata is None else dict(published.metadata),
        "comfy_quant": published.mark,
        "tensors": {name: [dtype, list(shape)] for name, (dtype, shape) in tensors.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as file:
        file.write(text.encode())
    return buffer.getvalue()


def main() -> int:
    made = {
        FOLDER / f"{published.name}.json.gz": fixture(kind, published)
        for kind, files in KINDS.items()
        for published in files
    }
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, content in made.items() if not same(path, content)]
        extra = [path.name for path in FOLDER.glob("*.json.gz") if path not in made]
        print("differ:", ", ".join(stale + extra) or "none")
        return 1 if stale or extra else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, content in made.items():
        path.write_bytes(content)
    print(f"{len(made)} fixtures, {sum(map(len, made.values()))} bytes")
    return 0


def same(path: Path, content: bytes) -> bool:
    return path.exists() and gzip.decompress(path.read_bytes()) == gzip.decompress(content)


if __name__ == "__main__":
    sys.exit(main())
