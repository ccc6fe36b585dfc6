"""The process that opens a pickle: run as a script by `pickle_file`, never imported by the program.

Standard input is the pickle, standard output receives a safetensors file, and the last line of standard error
is JSON that says how it went. Before the file is looked at, the process gives up the network, its rights to
write files and to start programs, and memory beyond what the file's size explains. The file is then read by
torch's weights-only unpickler, which builds tensors and plain containers and calls nothing else.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

MEGABYTE = 1 << 20
MAX_ENTRIES, MAX_NAMES, MAX_DEPTH = 200_000, 200_000, 12
LEGACY_PICKLES = 5
"""Pickles at the beginning of a file of torch before 1.6: magic number, version, system, object, storages."""

STATES = ("state_dict", "params_ema", "params", "model_state_dict", "model", "module", "net", "weights")
"""Names under which programs put a model's tensors beside what they do not need for drawing."""

PLACEHOLDERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
"""Names that published checkpoints mention beside their tensors; each stands for an object that does nothing,
whatever the file wants done with it."""

OPCODES = frozenset(
    {
        "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "TUPLE",
        "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST",
        "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE",
        "SHORT_BINSTRING", "BINPERSID",
        "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "LONG1", "PROTO", "STOP",
    }
)  # fmt: skip
"""What torch's weights-only unpickler carries out."""

FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill",
    "os.putenv", "subprocess.", "socket.", "shutil.", "ctypes.", "webbrowser.", "urllib.", "pty.",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(Exception):
    """What is wrong with the file, for a person."""


class Placeholder:
    """Stands for an object that is no tensor; takes anything and does nothing."""

    def __init__(self, *given: object, **named: object) -> None:
        del given, named

    def __setstate__(self, state: object) -> None:
        del state


def give_up_the_network() -> None:
    """A network of its own, with nothing in it, where the system allows that."""
    new_user, new_network = 0x10000000, 0x40000000
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(new_network) != 0:
            libc.unshare(new_user | new_network)
    except (OSError, AttributeError):
        pass


def limit(size: int, seconds: int) -> None:
    """No programs, no large files, no more time; memory by what is in use now and what the file explains."""
    if sys.platform == "win32":
        return
    import resource

    limits = {"RLIMIT_CORE": 0, "RLIMIT_CPU": seconds, "RLIMIT_NPROC": 0}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", "rb") as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        limits["RLIMIT_AS"] = in_use + 3 * size + 1024 * MEGABYTE
    for name, value in limits.items():
        try:
            number = getattr(resource, name)
            resource.setrlimit(number, (value, value))
        except (AttributeError, OSError, ValueError):
            continue


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: nothing is started, connected, written or removed from here on."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if writes or event.startswith(FORBIDDEN):
        raise PermissionError(f"the file caused {event}, which is forbidden")


def check(file: BinaryIO, size: int) -> bool:
    """Refuse what is no plain pickle of tensors, and name what it asks for. Whether it is a zip."""
    start = file.read(300)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        _check_zip(file, size)
        return True
    if start[257:262] == b"ustar":
        raise Refused("a tar archive (torch before 0.1.10): open it with the program that wrote it")
    if not start.startswith(b"\x80"):
        raise Refused("no pickle; expected a .pt, .pth, .ckpt or .bin file that torch.save wrote")
    _check_pickles(file, LEGACY_PICKLES)
    return False


def _check_zip(file: BinaryIO, size: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise Refused(f"{len(entries)} entries in the archive; at most {MAX_ENTRIES} are accepted")
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > 2 * size + 64 * MEGABYTE:
                raise Refused(f"a zip bomb: {size} bytes would become {unpacked}")
            names = [entry.filename for entry in entries]
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                raise Refused("a TorchScript archive, which is a program and not tensors alone")
            pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise Refused("a zip archive without a data.pkl: not written by torch.save")
            _check_pickles(io.BytesIO(archive.read(pickles[0])), 1)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Refused(f"a damaged zip archive: {error}; download it again") from error
    file.seek(0)


def _check_pickles(file: BinaryIO, most: int) -> None:
    from torch import _weights_only_unpickler as unpickler

    mapping = unpickler.NAME_MAPPING, unpickler.IMPORT_MAPPING
    allowed = {*unpickler._get_allowed_globals(), *PLACEHOLDERS}  # pyright: ignore[reportPrivateUsage]
    refused: dict[str, None] = {}
    texts: list[str] = []
    for number in range(most):
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    module, _, name = str(argument).partition(" ")
                    module, name = mapping[0].get((module, name), (mapping[1].get(module, module), name))
                    if f"{module}.{name}" not in allowed:
                        refused[f"{module}.{name}"] = None
                elif opcode.name == "STACK_GLOBAL":
                    refused[".".join(texts[-2:]) or "a name that it computes"] = None
                if opcode.name not in OPCODES:
                    refused[f"the opcode {opcode.name}"] = None
                if isinstance(argument, str) and "UNICODE" in opcode.name:
                    texts = [*texts[-1:], argument[:100]]
        except ValueError as error:
            if number == 0 or refused:
                break_off = f"damaged, or no pickle: {str(error)[:200]}"
                if not refused:
                    raise Refused(break_off) from error
            break
    file.seek(0)
    if refused:
        shown = ", ".join(list(refused)[:20]) + (
            f" and {len(refused) - 20} more" if len(refused) > 20 else ""
        )
        raise Refused(
            f"it asks for more than tensors: {shown}. Such a file can run programs; nothing was run"
        )


def load(file: BinaryIO, is_zip: bool) -> Any:
    """What the file holds, by torch's weights-only unpickler."""
    import torch

    path = f"/proc/self/fd/{file.fileno()}"
    mapped = is_zip and os.path.exists(path)
    try:
        with torch.serialization.safe_globals([(Placeholder, name) for name in PLACEHOLDERS]):
            return torch.load(path if mapped else file, "cpu", weights_only=True, mmap=mapped or None)
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(_reason(str(error))) from error


def _reason(text: str) -> str:
    """torch's message without its advice to open the file all the same."""
    known = (
        (r"GLOBAL ([\w.]+)", "it asks for {}"),
        (r"Unsupported operand (\d+)", "it uses the opcode {}"),
        (r"unrecognized function (.{1,100}?)(?: which|\n|$)", "it calls {}"),
        (r"Can only (.{1,200}?)(?:\n|$)", "it asks for more than tensors: torch can only {}"),
    )
    for pattern, said in known:
        if found := re.search(pattern, text):
            return said.format(found[1])
    memory = re.search(
        r"not enough memory|can't allocate|Cannot allocate|bad_alloc|DefaultCPUAllocator", text
    )
    if memory:
        raise MemoryError(text)
    return (
        f"damaged or cut short: {text.strip().splitlines()[0][:200] if text.strip() else 'it cannot be read'}"
    )


def tensors_of(found: Any) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Tensors by name, plain values beside them as texts, and the names of what is left out."""
    import torch

    if isinstance(found, torch.Tensor):
        return {"emb_params": found}, {}, []
    if not isinstance(found, dict):
        raise Refused(f"a {type(found).__name__}, not tensors by name")
    left: list[str] = []
    texts = {
        str(key)[:200]: str(value)[:1000]
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, str | int | float) and str(value).isprintable()
    }
    chosen: Any = found
    vectors = found.get("string_to_param")
    if isinstance(vectors, dict) and len(vectors) == 1:
        chosen = {"emb_params": next(iter(vectors.values()))}
        left = [str(key) for key in found if key != "string_to_param" and str(key) not in texts]
    else:
        state = next((key for key in STATES if isinstance(found.get(key), dict) and found[key]), None)
        if state is not None and not any(isinstance(value, torch.Tensor) for value in found.values()):
            chosen = found[state]
            left = [str(key) for key in found if key != state and str(key) not in texts]
    tensors: dict[str, Any] = {}
    for name, value in _flat(chosen, "", 0):
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach()
        elif name not in texts:
            left.append(name)
        if len(tensors) + len(left) > MAX_NAMES:
            raise Refused(f"more than {MAX_NAMES} names")
    return tensors, texts, left


def _flat(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        if depth > MAX_DEPTH:
            raise Refused(f"tensors nested deeper than {MAX_DEPTH} levels")
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key), depth + 1)
    else:
        yield name, value


def write(out: BinaryIO, tensors: dict[str, Any], texts: dict[str, str], size: int) -> None:
    """The tensors as a safetensors file, one after the other."""
    import torch

    types = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
        torch.bool: "BOOL", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
    header: dict[str, Any] = {"__metadata__": {**texts, "format": "pt"}}
    reached = 0
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise Refused(f"the tensor {name!r} is {tensor.layout} on {tensor.device}; expected plain values")
        if tensor.dtype not in types:
            raise Refused(f"the tensor {name!r} holds {tensor.dtype}, which safetensors has no name for")
        end = reached + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": types[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [reached, end],
        }
        reached = end
    if reached > 2 * size + 64 * MEGABYTE:
        raise Refused(f"its tensors claim {reached} bytes, and the whole file has {size}")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        plain = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
        if plain.numel():
            out.write(memoryview(plain.view(torch.uint8).numpy()))
    out.flush()


def convert(file: BinaryIO, size: int, out: BinaryIO) -> dict[str, Any]:
    """Write what an open pickle of so many bytes holds as safetensors; a report of it. Raises Refused."""
    tensors, texts, left = tensors_of(load(file, is_zip=check(file, size)))
    if not tensors:
        raise Refused("it holds no tensors by name")
    write(out, tensors, texts, size)
    return {"tensors": len(tensors), "left_out": left[:50], "left_out_count": len(left)}


def confine(size: int, seconds: int) -> None:
    """Everything that this process gives up before it looks at the file."""
    give_up_the_network()  # first: later there are threads, which forbid it
    import torch

    torch.set_num_threads(1)
    limit(size, seconds)
    sys.addaudithook(forbid)


def main() -> None:
    size, seconds = int(sys.argv[1]), int(sys.argv[2])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    report: dict[str, Any]
    try:
        confine(size, seconds)
        report = convert(sys.stdin.buffer, size, out)
    except Refused as error:
        report = {"error": str(error)}
    except MemoryError:
        report = {"error": "it needs much more memory than its size explains"}
    except Exception as error:  # noqa: BLE001 - whatever a hostile file raises, the parent is told
        report = {"error": f"damaged: {type(error).__name__}: {str(error)[:300]}"}
    sys.stderr.write("\n" + json.dumps({"report": report}) + "\n")
    sys.stderr.flush()
    os._exit(1 if "error" in report else 0)


if __name__ == "__main__":
    main()
