"""What can be said of this machine without torch: Python, memory, folders, the cards that are in it."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from loraloom.cli.doctor.finding import GIB, Finding, gigabytes
from loraloom.folders import ModelFolders

OLDEST = (3, 11)
_SMALL_MEMORY = 7 * GIB  # less than the files of an SDXL checkpoint
_LITTLE_DISK = 5 * GIB
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "9p", "drvfs", "fuse.sshfs", "webdav", "afpfs"}
)
_BRAKES: Mapping[str, str] = {
    "CUDA_LAUNCH_BLOCKING": "the processor waits for every step of the card",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "torch asks the driver for every tensor's memory",
    "PYTORCH_ENABLE_MPS_FALLBACK": "what Metal lacks is computed on the processor",
}
"""Variables that people set to find a fault, and forget."""


def python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    text = f"{version}, {platform.system()} {platform.release()}, {platform.machine()}, {sys.executable}"
    if sys.version_info < OLDEST:
        return [Finding("problem", "Python", text, "Loraloom needs Python 3.11 or newer")]
    if struct.calcsize("P") < 8:
        return [Finding("problem", "Python", f"{text} (32 bit)", "torch needs a Python of 64 bits")]
    if translated():
        advice = "install a Python for arm64: only that reaches the graphics of Apple silicon"
        return [Finding("slow", "Python", f"{text} (for Intel, translated by Rosetta)", advice)]
    return [Finding("ok", "Python", text)]


def translated() -> bool:
    """Whether an Intel Python runs on Apple silicon."""
    if sys.platform != "darwin" or platform.machine() != "x86_64":
        return False
    asked = ["/usr/sbin/sysctl", "-in", "sysctl.proc_translated"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == "1"


def memory(bound: int | None = None) -> list[Finding]:
    """bound: bytes that a container may use."""
    found = psutil.virtual_memory()
    total = min(found.total, bound or found.total)
    text = f"{gigabytes(total)}, {gigabytes(min(found.available, total))} of it free"
    if total < found.total:
        text += f" (this container's share of {gigabytes(found.total)})"
    if total < _SMALL_MEMORY:
        advice = "small models fit (Stable Diffusion 1.5); larger ones are read from the disk again and again"
        return [Finding("slow", "memory", text, advice)]
    if min(found.available, total) < total // 4:
        return [
            Finding("slow", "memory", text, "close other programs: models that do not fit are read again")
        ]
    return [Finding("ok", "memory", text)]


def container_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this container may use, where there is a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def models(folders: ModelFolders) -> list[Finding]:
    """The model folders, what is in them, and whether they are far away."""
    places = ", ".join(str(root.absolute()) for root in folders.roots)
    counts = {kind: len(folders.list(kind)) for kind in ("checkpoints", "diffusion_models", "loras")}
    if not any(counts.values()):
        advice = "name the folder with --models or LORALOOM_MODELS; `loraloom demo` needs none"
        return [Finding("note", "models", f"{places}: no model files", advice)]
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    found = [Finding("ok", "models", f"{places}: {text}")]
    for root in folders.roots:
        if (kind := file_system(root)) in _REMOTE:
            advice = "copy the files you use to a disk of this machine: they are read anew at every start"
            found.append(Finding("slow", "models", f"{root.absolute()} lies on a {kind} drive", advice))
    return found


def file_system(path: Path) -> str:
    """The kind of file system that a path is on; "" where that cannot be told."""
    text = os.path.realpath(path)
    mounted = [part for part in psutil.disk_partitions(all=True) if _holds(part.mountpoint, text)]
    return max(mounted, key=lambda part: len(part.mountpoint)).fstype.lower() if mounted else ""


def _holds(folder: str, path: str) -> bool:
    try:
        return os.path.commonpath([folder, path]) == os.path.normpath(folder)
    except ValueError:  # different drives
        return False


def writable(about: str, folder: Path) -> Finding:
    """Whether files can be made in a folder, which need not be there yet, and how much fits."""
    place = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        text = f"nothing can be written to {folder.absolute()}"
        return Finding(
            "problem", about, text, f"choose another place with --{about}-dir, or change its owner"
        )
    free = shutil.disk_usage(place).free
    text = f"{folder.absolute()}, {gigabytes(free)} free"
    if free < _LITTLE_DISK:
        return Finding(
            "note", about, text, "free some space: pictures are small, the queue and models are not"
        )
    return Finding("ok", about, text)


def long_paths(limited: bool) -> list[Finding]:
    """limited: whether Windows lets programs use paths of up to 260 characters only."""
    if not limited:
        return []
    text = "Windows opens paths of up to 260 characters: models in deeper folders are not found"
    advice = "run the Python installer again and choose to disable the path length limit"
    return [Finding("note", "paths", text, advice)]


def limits_paths() -> bool:
    """Whether Windows' limit of 260 characters is in force; elsewhere there is none."""
    if sys.platform != "win32":
        return False
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return winreg.QueryValueEx(key, "LongPathsEnabled")[0] != 1
    except OSError:
        return True


def brakes(environment: Mapping[str, str]) -> list[Finding]:
    """Variables that make torch slow."""
    return [
        Finding("slow", name, f"is set: {effect}", f"unset {name}")
        for name, effect in _BRAKES.items()
        if environment.get(name, "0") not in ("", "0")
    ]


def cards() -> set[str]:
    """Makers whose driver is here, whatever torch makes of it: "nvidia", "amd"."""
    driver = sys.platform == "win32" or any(Path(p).exists() for p in ("/proc/driver/nvidia", "/dev/dxg"))
    found = {"nvidia"} if driver and shutil.which("nvidia-smi") is not None else set[str]()
    return found | ({"amd"} if Path("/dev/kfd").exists() else set())
