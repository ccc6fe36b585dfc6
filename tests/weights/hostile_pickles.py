"""Files that torch.save could have written, and those that somebody wrote to do harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MARK = "loraloom-was-here"
"""A file that every hostile one tries to make in the working directory and in the folder that it is told."""


SYSTEM: Callable[[str], int] = getattr(os, "system")  # noqa: B009 - a name that checkers have no word on


def harm(folder: Path) -> str:
    return f"touch {folder / MARK}"


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def saved(found: Any, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def with_pickle(pickled: bytes, data: bytes = b"\0" * 64, *, compressed: bool = False) -> bytes:
    """A zip archive as torch writes it, around a pickle of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], elements: int) -> bytes:
    """A dict of one float tensor over storage 0 that claims this shape and this many elements."""

    def number(value: int) -> bytes:
        if value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        packed = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(packed)]) + packed

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(elements)
               + b"tQ")  # fmt: skip
    rebuilt = (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + numbers(size) + numbers(stride)
               + b"\x89ccollections\nOrderedDict\n)RtR")  # fmt: skip
    return b"\x80\x02}" + text("a") + rebuilt + b"s."


def build(folder: Path) -> bytes:
    """A BUILD that would overwrite what an object is."""
    return b"\x80\x02cbuiltins\nobject\n)\x81}X\x05\x00\x00\x00" + b"evil_" + b"X\x01\x00\x00\x00xsb."


def instance(folder: Path) -> bytes:
    """The oldest opcodes: INST calls as it builds."""
    return b"(S'" + harm(folder).encode() + b"'\nios\nsystem\n."


def laughs() -> Any:
    """Dictionaries of dictionaries of …, each twice: small on the disk, endless when walked."""
    level: Any = {"t": torch.ones(1)}
    for _ in range(40):
        level = {"a": level, "b": level}
    return level


def hostile(folder: Path) -> Mapping[str, tuple[bytes, str]]:
    """Name → content and what the error must say."""
    command = harm(folder)
    tensor = {"t": torch.ones(2)}
    whole = saved({"state_dict": {"a": torch.randn(64, 64)}})
    old = saved({"state_dict": {"a": torch.randn(64, 64)}}, old=True)
    system = f"{SYSTEM.__module__}.system"
    return {
        "reduce": (saved(tensor | {"x": Calls(SYSTEM, command)}), system),
        "reduce in an old file": (saved(tensor | {"x": Calls(SYSTEM, command)}, old=True), system),
        "reduce by a plain pickle": (pickle.dumps({"x": Calls(SYSTEM, command)}, 2), system),
        "protocol 5": (pickle.dumps({"x": Calls(SYSTEM, command)}, 5), system),
        "eval": (saved(Calls(eval, f"__import__('os').system({command!r})")), "builtins.eval"),
        "getattr": (saved(tensor | {"x": Calls(getattr, "x", "upper")}), "builtins.getattr"),
        "two names": (saved([Calls(exec, "1"), Calls(print, "x")]), "builtins.exec, builtins.print"),
        "torch's own loader": (
            saved(tensor | {"x": Calls(torch.load, "/etc/passwd")}),
            "torch.serialization.load",
        ),
        "jit": (saved(tensor | {"x": Calls(torch.hub.load, "x", "y")}), "torch.hub.load"),
        "behind a placeholder": (saved({"x": Calls(SYSTEM, command), "state_dict": tensor}), system),
        "nested": (saved({"a": [{"b": ({"c": Calls(SYSTEM, command)},)}]}), system),
        "build": (with_pickle(build(folder)), "builtins.object"),
        "inst": (instance(folder), "no pickle"),
        "inst in an archive": (with_pickle(b"\x80\x02" + instance(folder)), "os.system"),
        "stack global": (with_pickle(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R."), "os.system"),
        "extension codes": (with_pickle(b"\x80\x02\x82\x01)R."), "EXT1"),
        "out-of-band": (with_pickle(b"\x80\x05\x97."), "NEXT_BUFFER"),
        "a huge string": (with_pickle(b"\x80\x02X\xff\xff\xff\x7fabc."), "damaged"),
        "a huge count of bytes": (with_pickle(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."), "damaged"),
        "a tensor of more than its storage": (
            with_pickle(tensor_pickle((1 << 20, 1 << 10), (1 << 10, 1), 16)),
            "damaged",
        ),
        "a storage of more than the file": (
            with_pickle(tensor_pickle((1 << 40,), (1,), 1 << 40)),
            "damaged|claim|memory",
        ),
        "strides of nothing": (
            with_pickle(tensor_pickle((1 << 20, 1 << 20), (0, 0), 16)),
            "tensors claim 4398046511104 bytes",
        ),
        "negative sizes": (with_pickle(tensor_pickle((-4,), (1,), 16)), "damaged"),
        "a zip bomb": (with_pickle(b"\x80\x02}.", b"\0" * (100 << 20), compressed=True), "a zip bomb"),
        "a bomb in the pickle": (
            with_pickle(b"\x80\x02}" + b"0" * (80 << 20) + b".", compressed=True),
            "a zip bomb",
        ),
        "TorchScript": (torchscript(), "TorchScript"),
        "an archive of something else": (other_zip(), "without a data.pkl"),
        "two pickles": (two_pickles(), "without a data.pkl"),
        "a billion laughs": (saved(laughs()), "nested deeper"),
        "cut in the archive": (whole[: len(whole) // 2], "damaged"),
        "cut at its end": (whole[:-40], "damaged"),
        "cut in an old file": (old[: len(old) // 2], "damaged|cut"),
        "cut in the pickle": (old[:60], "damaged"),
        "a sparse tensor": (saved({"s": torch.eye(3).to_sparse()}), "sparse"),
        "a list": (saved([torch.ones(2)]), "a list, not tensors by name"),
        "no tensors": (saved({"a": 1, "b": {"c": "d"}}), "no tensors"),
        "empty": (b"", "no pickle"),
        "text": (b"hello", "no pickle"),
        "safetensors": (struct.pack("<Q", 2) + b"{}", "no pickle"),
        "an old tar": (tar(), "tar archive"),
        "a list that ends early": (with_pickle(b"\x80\x02" + b"].h\x00" * 3), "a list"),
        "not utf-8": (with_pickle(b"\x80\x02cos\xff\nsystem\n."), "damaged"),
    }


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
        archive.writestr("m/constants.pkl", pickle.dumps((), 2))
        archive.writestr("m/code/__torch__.py", "import os")
    return buffer.getvalue()


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "x")
    return buffer.getvalue()


def two_pickles() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("b/data.pkl", pickle.dumps({}, 2))
    return buffer.getvalue()


def tar() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return buffer.getvalue()
