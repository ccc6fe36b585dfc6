"""A LoRA file as its header describes it: modules, tensors, metadata. No torch, and never a pickle."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

from blake3 import blake3

from loraloom.errors import InputError, ModelFileError
from loraloom.file_identity import FileIdentity
from loraloom.lora.algebra import SHARED
from loraloom.lora.algebras import registry
from loraloom.lora.other_files import other_kind
from loraloom.lora.tensor_names import BUNDLE, settled, split_key
from loraloom.lora.unsupported import count_unsupported, say_unsupported, unsupported_kind
from loraloom.weights.header import Header, TensorInfo, open_regular, pickle_advice, read_header

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
MAX_CONFIG_BYTES = 4_000_000

_SCALARS = {
    "F16": "<e",
    "F32": "<f",
    "F64": "<d",
    "I64": "<q",
    "I32": "<i",
    "U8": "<B",
    "I8": "<b",
    "BOOL": "<?",
}


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors that a file holds for one module. tensors: role → tensor name."""

    name: str
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA file read up to its header.

    modules: grouped by module, in the order of the file. unknown: tensors whose suffix no dialect has.
    repeated: tensors whose role in their module another tensor has already (a second PEFT adapter).
    unsupported: those of the unknown tensors whose adapter is known by name (name → adapter).
    bundled: names of textual-inversion tensors. config: PEFT's adapter_config.json, or {}.
    """

    header: Header
    modules: tuple[Module, ...]
    unknown: tuple[str, ...]
    repeated: tuple[str, ...]
    bundled: tuple[str, ...]
    config: Mapping[str, object]
    unsupported: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def identity(self) -> FileIdentity:
        return self.header.identity

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.header.metadata

    @property
    def state(self) -> str:
        """Which file this is, as it is now, with its PEFT config: equal states, equal effect."""
        return f"{self.identity}{self._config_digest}"

    def digest(self, content: str) -> str:
        """The BLAKE3 of the content, and of the PEFT config where there is one."""
        return content + self._config_digest

    @property
    def _config_digest(self) -> str:
        if not self.config:
            return ""
        return ":" + blake3(json.dumps(dict(self.config), sort_keys=True).encode()).hexdigest()[:16]

    def shapes(self, module: Module) -> dict[str, tuple[int, ...]]:
        """Role → shape of one module's tensors."""
        return {role: self.header.tensors[key].shape for role, key in module.tensors.items()}

    def scalar(self, key: str) -> float | None:
        """The value of a tensor of one element; None where there are more, or the type has no plain form."""
        info = self.header.tensors[key]
        if math.prod(info.shape) != 1:
            return None
        return _scalar(info, self.read_bytes(key))

    def read_bytes(self, key: str, limit: int = 1 << 20) -> bytes:
        """The raw bytes of a small tensor."""
        info = self.header.tensors[key]
        with os.fdopen(open_regular(self.path), "rb") as file:
            file.seek(self.header.data_start + info.begin)
            return file.read(min(info.nbytes, limit))

    def scales(self) -> dict[str, float]:
        """Tensor name → value of all that say a scale, in one pass over the file."""
        shared = SHARED.values()
        keys = [key for one in self.modules for role, key in one.tensors.items() if role in shared]
        found: dict[str, float] = {}
        with os.fdopen(open_regular(self.path), "rb") as file:
            for key in keys:
                info = self.header.tensors[key]
                if math.prod(info.shape) == 1:
                    file.seek(self.header.data_start + info.begin)
                    value = _scalar(info, file.read(info.nbytes))
                    if value is not None:
                        found[key] = value
        return found


def _scalar(info: TensorInfo, data: bytes) -> float | None:
    if info.dtype == "BF16" and len(data) == 2:
        return struct.unpack("<f", b"\0\0" + data)[0]
    form = _SCALARS.get(info.dtype)
    if form is None or len(data) != struct.calcsize(form):
        return None
    return float(struct.unpack(form, data)[0])


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read the header of a LoRA file, or of a PEFT or diffusers directory that holds one.

    Raises ModelFileError where the file is damaged, of another kind, or holds no LoRA tensor at all.
    """
    where = Path(path)
    config: Mapping[str, object] = {}
    if where.is_dir():
        where = _in_directory(where)
    beside = where.with_name(PEFT_CONFIG)
    if where.name == PEFT_WEIGHTS and beside.is_file():
        config = _read_config(beside)
    header = read_header(where)
    if (kind := other_kind(header.tensors, sure=True)) is not None:
        raise ModelFileError(f"{where}: {kind}")
    file = _group(header, config)
    if not _holds_lora(file):
        raise ModelFileError(_not_a_lora(header, file.unsupported))
    return file


def _holds_lora(file: LoraFile) -> bool:
    """Whether any tensor is a LoRA's. Norms of some networks are called as a scale is (".scale"), which says
    nothing where the other names are those of another kind of file."""
    bound = registry().bound
    if file.bundled or any(not bound.issuperset(module.tensors) for module in file.modules):
        return True
    return bool(file.modules) and other_kind(file.header.tensors, sure=False) is None


def _in_directory(folder: Path) -> Path:
    for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    for name in ("adapter_model.bin", "pytorch_lora_weights.bin"):
        if (folder / name).is_file():
            raise ModelFileError(
                f"{folder}: holds its weights as a pickle (.bin), which can run code when opened and is never"
                f" loaded: {pickle_advice(folder / name)}"
            )
    raise InputError(
        f"{folder}: a directory without {PEFT_WEIGHTS} or {DIFFUSERS_WEIGHTS}; give the LoRA's file"
    )


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ModelFileError(f"{path}: {path.stat().st_size} bytes; a PEFT config is a few kilobytes")
        found: object = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a PEFT config: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: not a PEFT config: a JSON object was expected")
    return MappingProxyType(cast(dict[str, object], found))


def _group(header: Header, config: Mapping[str, object]) -> LoraFile:
    """Tensors by module; a module without a single role of its own counts as unknown, as do adapters that
    are not applied."""
    groups: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    repeated: list[str] = []
    bundled: list[str] = []
    unsupported: dict[str, str] = {}
    strange: dict[str, str] = {}
    for key in header.tensors:
        if key.startswith(BUNDLE):
            bundled.append(key)
            continue
        if (known := unsupported_kind(key)) is not None:
            unsupported[key] = strange[known[0]] = known[1]
            continue
        parts = split_key(key)
        if parts is None:
            unknown.append(key)
        elif parts[1] in (roles := groups.setdefault(parts[0], {})):
            repeated.append(key)
        else:
            roles[parts[1]] = key
    modules: list[Module] = []
    for name, roles in groups.items():
        if name in strange:
            unsupported |= dict.fromkeys(roles.values(), strange[name])
            continue
        name, roles, strays = settled(name, roles)
        unknown += strays
        if roles:
            modules.append(Module(name, MappingProxyType(roles)))
    unknown += unsupported
    return LoraFile(
        header, tuple(modules), tuple(unknown), tuple(repeated), tuple(bundled), config, unsupported
    )


def _not_a_lora(header: Header, unsupported: Mapping[str, str]) -> str:
    names = list(header.tensors)
    if unsupported:
        return f"{header.path}: {say_unsupported(count_unsupported(unsupported))}"
    if not names:
        return f"{header.path}: holds no tensors; expected a LoRA"
    if (kind := other_kind(names, sure=False)) is not None:
        return f"{header.path}: {kind}"
    shown = ", ".join(names[:3])
    return (
        f"{header.path}: none of its {len(names)} tensors is a LoRA's ({shown}, …);"
        f" expected names like …{next(iter(registry().algebras['lora'].endings))}"
    )
