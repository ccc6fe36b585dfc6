"""Writing model files in another storage format, and measuring what it loses.

Quantised are the matrices of numbered blocks: nearly all of a network's bytes. What stands outside of blocks
(embeddings, first and last layers), norms, biases and convolutions stay as they are.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from loraloom.atomic_file import write_file
from loraloom.errors import InputError, ModelFileError
from loraloom.weights.dtypes import DTYPE_NAMES, DTYPES
from loraloom.weights.formats import Format, TensorInfo, formats
from loraloom.weights.gguf_header import TYPES
from loraloom.weights.marks import MARK, METADATA
from loraloom.weights.tensor_file import TensorFile

SMALLEST = 4096
"""Values of the smallest matrix that is quantised."""

FLOATS: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Targets that are no quantisation: a file comes back to them."""

WRITTEN = ("int8", "int8:convrot", "fp8", "fp8:e5m2", "mxfp8", "nvfp4", "convrot_w4a4", "gguf:TYPE", *FLOATS)

_NETWORK = ("model.diffusion_model.", "diffusion_model.")
_NUMBERED = re.compile(r"\.\d+\..*\.weight|^[a-z_]*(blocks|layers)\.\d+\..*\.weight")
_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}

Said: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LayerLoss:
    """What a weight lost: ‖W' - W‖ / ‖W‖ (Frobenius), as it is read back from the written file."""

    name: str
    format: str
    shape: tuple[int, ...]
    relative: float


@dataclass(frozen=True, slots=True)
class Written:
    """A file in another storage format. kept: tensors that are as they were."""

    path: Path
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerLoss, ...]
    kept: int


def quantise_file(
    path: Path, to: str, out: Path, *, architecture: str = "", said: Said | None = None
) -> Written:
    """Write a model file's weights as `to` says (`WRITTEN`).

    architecture: what a GGUF file calls it. said: told the name of each weight that is done. InputError for a
    target that is not known; the new file appears whole or not at all."""
    kind, _, option = to.partition(":")
    if out.resolve() == path.resolve():
        raise InputError(f"{out} is the file itself; choose another name")
    file = TensorFile(path)
    if kind == "gguf":
        make = _Gguf(file, _gguf_type(option), architecture)
    elif kind in FLOATS and not option:
        make = _Safetensors(file, lambda name, info: None, FLOATS[kind])
    else:
        format = _format(kind, option)
        prefix = network_prefix(file)
        make = _Safetensors(
            file, lambda name, info: format if is_quantised(name, info, prefix) else None, None, option
        )
    if kind not in FLOATS and not make.quantises:
        raise InputError(
            f"{path}: nothing here is stored as {to}: it has no matrices of numbered blocks, which is what "
            "quantising is for (autoencoders are convolutions: leave them as they are, or write bf16)"
        )
    write_file(out, make.content(said or (lambda name: None)))
    return _measured(file, TensorFile(out), make.names)


def network_prefix(file: TensorFile) -> str:
    """What stands before the names of a checkpoint's diffusion network; "" for other files."""
    return next((p for p in _NETWORK if any(name.startswith(p) for name in file.header.tensors)), "")


def is_quantised(name: str, info: TensorInfo, prefix: str) -> bool:
    """Whether a weight is one of those that quantising is for. prefix: that of the network."""
    if not name.startswith(prefix) or not _NUMBERED.search(name.removeprefix(prefix)):
        return False
    rows_and_columns = len(info.shape) == 2 and info.shape[0] * info.shape[1] >= SMALLEST
    return rows_and_columns and not re.search(r"emb|norm\d*\.weight", name)


def _format(kind: str, option: str) -> Format:
    known = formats().get(kind)
    options = {
        "fp8": r"e4m3fn|e5m2",
        "int8": r"convrot(4|16|64|256|1024)?",
        "convrot_w4a4": r"4|16|64|256|1024",
    }
    if (
        known is None
        or type(known).pack is Format.pack
        or not re.fullmatch(options.get(kind, "") + "|", option)
    ):
        asked = f"{kind}:{option}" if option else kind
        raise InputError(f"no such storage format to write: {asked!r}; use one of {', '.join(WRITTEN)}")
    return known


def _gguf_type(option: str) -> str:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    name = option.upper()
    try:
        quantize(np.zeros((1, 256), np.float32), GGMLQuantizationType[name])
    except (KeyError, NotImplementedError):
        raise InputError(
            f"GGUF weights of type {option!r} are not written here; use Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, BF16 or"
            " F16 (types such as Q4_K are read, and made by llama.cpp)"
        ) from None
    return name


class _Safetensors:
    """A safetensors file with some weights in another format, marked as ComfyUI reads it."""

    def __init__(
        self,
        file: TensorFile,
        choose: Callable[[str, TensorInfo], Format | None],
        dtype: torch.dtype | None,
        option: str = "",
    ) -> None:
        self._file, self._option, self._dtype = file, option, dtype
        tensors = file.header.tensors
        self._formats = {name: choose(name, info) for name, info in tensors.items()}
        self.names = {name: name for name in tensors}
        self.quantises = any(self._formats.values())

    def content(self, said: Said) -> Iterator[bytes]:
        """The file's bytes in pieces; sizes are found first, on a device without memory."""
        plans: dict[str, dict[str, Any]] = {}
        place = 0
        for name, info in self._file.header.tensors.items():
            dtype = DTYPES.get(info.dtype) if info.is_readable else torch.float32
            for key, tensor in self._made(name, torch.empty(info.shape, dtype=dtype, device="meta")).items():
                plans[key] = {
                    "dtype": DTYPE_NAMES[tensor.dtype],
                    "shape": list(tensor.shape),
                    "data_offsets": [place, place + tensor.nbytes],
                }
                place += tensor.nbytes
        metadata = {k: v for k, v in self._file.header.metadata.items() if k != METADATA}
        text = json.dumps({"__metadata__": {"format": "pt", **metadata}, **plans}).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<Q", len(text)) + text
        for name in self._file.header.tensors:
            for tensor in self._made(name, self._file.read(name)).values():
                yield _bytes(tensor)
            said(name)

    def _made(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """The new file's tensors for one of the old."""
        format, stem = self._formats[name], name.removesuffix(".weight")
        if format is not None and not values.is_meta:
            _check_finite(self._file, name, values)
        packed = None if format is None else format.pack(values.float(), self._option)
        if packed is None:
            stored = DTYPES.get(self._file.header.tensors[name].dtype, torch.bfloat16)
            is_float = values.is_floating_point()
            wanted = self._dtype or (
                stored if self._file.header.tensors[name].is_readable else torch.bfloat16
            )
            if is_float and wanted == torch.float16 and not values.is_meta:
                _check_range(self._file, name, values)
            return {name: values.to(wanted if is_float else values.dtype)}
        tensors, mark = packed
        found = {f"{stem}.{part}": tensor for part, tensor in tensors.items()}
        text = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
        return {**found, f"{stem}.{MARK}": text}


class _Gguf:
    """A GGUF file of a diffusion network, as ComfyUI-GGUF reads it: native names without a prefix."""

    def __init__(self, file: TensorFile, kind: str, architecture: str) -> None:
        if not architecture:
            raise InputError(f"{file.path}: a GGUF file is written of a diffusion model only")
        self._file, self._architecture = file, architecture
        self._prefix = prefix = network_prefix(file)
        self._tensors = {n: i for n, i in file.header.tensors.items() if n.startswith(prefix)}
        self.names = {name: name.removeprefix(prefix) for name in self._tensors}
        self._types = {name: self._type(name, info, kind) for name, info in self._tensors.items()}
        self.quantises = kind in self._types.values()

    def _type(self, name: str, info: TensorInfo, kind: str) -> str:
        """One-dimensional tensors are F32, others that are not quantised F16 (BF16 where the file is)."""
        if len(info.shape) < 2:
            return "F32"
        values = TYPES[_NUMBERS[kind]][1]
        if is_quantised(name, info, self._prefix) and info.shape[1] % values == 0:
            return kind
        return "BF16" if info.dtype == "BF16" else "F16" if len(info.shape) < 5 else "F32"

    def content(self, said: Said) -> Iterator[bytes]:
        fields = _field("general.architecture", self._architecture)
        head, place = b"", 0
        for name, info in self._tensors.items():
            kind = self._types[name]
            head += _text(self.names[name]) + struct.pack(
                f"<I{len(info.shape)}Q", len(info.shape), *info.shape[::-1]
            )
            head += struct.pack("<IQ", _NUMBERS[kind], place)
            place += -(-self._size(name, info) // 32) * 32
        start = struct.pack("<4sIQQ", b"GGUF", 3, len(self._tensors), 1) + fields + head
        yield start + bytes(-len(start) % 32)
        for name in self._tensors:
            values = self._file.read(name, torch.float32)
            _check_finite(self._file, name, values)
            if self._types[name] not in ("F32", "BF16"):
                _check_range(self._file, name, values)
            stored = _gguf_bytes(values, self._types[name])
            yield stored + bytes(-len(stored) % 32)
            said(name)

    def _size(self, name: str, info: TensorInfo) -> int:
        _, values, width = TYPES[_NUMBERS[self._types[name]]]
        return torch.Size(info.shape).numel() // values * width


def _check_finite(file: TensorFile, name: str, values: Tensor) -> None:
    if not bool(values.float().isfinite().all()):
        raise ModelFileError(f"{file.path}: the weight {name!r} holds values that are no numbers")


def _check_range(file: TensorFile, name: str, values: Tensor) -> None:
    """ModelFileError where finite values would be infinite in float16, in which GGUF has its scales too."""
    largest = float(torch.where(values.isfinite(), values, 0).abs().max()) if values.numel() else 0.0
    if largest > torch.finfo(torch.float16).max:
        raise ModelFileError(
            f"{file.path}: the weight {name!r} holds {largest:.4g}, which float16 cannot hold; take bf16, or"
            " another format than GGUF"
        )


def _gguf_bytes(values: Tensor, kind: str) -> bytes:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if kind == "BF16":
        return _bytes(values.bfloat16())
    rows = values.reshape(-1, values.shape[-1]) if values.dim() else values.reshape(1, 1)
    return np.ascontiguousarray(quantize(rows.contiguous().numpy(), GGMLQuantizationType[kind])).tobytes()


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _field(key: str, value: str) -> bytes:
    return _text(key) + struct.pack("<I", 8) + _text(value)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _measured(old: TensorFile, new: TensorFile, names: Mapping[str, str]) -> Written:
    """What the new file holds, beside the old."""
    layers: list[LayerLoss] = []
    for name, written in names.items():
        info = new.header.tensors[written]
        is_plain = info.packing is None and old.header.tensors[name].packing is None
        if is_plain and info.dtype == old.header.tensors[name].dtype:
            continue
        before, after = old.read(name, torch.float32), new.read(written, torch.float32)
        norm = float(before.norm())
        loss = float((after - before).norm()) / norm if norm else 0.0
        if is_plain and loss == 0:  # as exact in the other type
            continue
        layers.append(LayerLoss(written, _format_name(info), info.shape, loss))
    sizes = old.header.file_size, new.header.file_size
    return Written(new.path, *sizes, tuple(layers), len(names) - len(layers))


def _format_name(info: TensorInfo) -> str:
    return info.dtype if info.packing is None else str(info.packing.settings.get("format", info.dtype))
