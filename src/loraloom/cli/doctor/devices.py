"""What torch said of the devices, judged: what will be used, what is not and why, what is slow."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any, cast

import psutil

from loraloom.cli.doctor.finding import Finding, gigabytes
from loraloom.cli.doctor.packages import install

PATIENCE = 120
"""Seconds that torch may take to be imported and to find its devices."""
SELECTOR = "https://pytorch.org/get-started/locally"
_MODULE = "loraloom.cli.doctor.torch_child"
_FEW_GIB = 6 << 30


class Asked:
    """The child that imports torch; it runs while the rest is looked at."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )

    def answer(self, patience: float = PATIENCE) -> dict[str, Any] | Finding:
        """What torch says, or what is wrong with it."""
        try:
            said, complaint = self._child.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.end()
            text = f"torch was not imported and asked for devices within {patience:.0f} s"
            return Finding(
                "problem", "torch", text, "look at the driver of the graphics card, or reinstall torch"
            )
        lines = [line for line in said.splitlines() if line.startswith("{")]
        if self._child.returncode == 0 and lines:
            return cast("dict[str, Any]", json.loads(lines[-1]))
        return broken(complaint, self._child.returncode)

    def end(self) -> None:
        """Stop asking."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.communicate()


def broken(complaint: str, code: int) -> Finding:
    """A torch that cannot be imported. complaint: what the child wrote to standard error."""
    last = next((line.strip() for line in reversed(complaint.splitlines()) if line.strip()), "")
    text = f"torch cannot be used: {last or f'its process ended with {code}'}"
    if "WinError" in last or "DLL" in last:
        advice = "install Microsoft's Visual C++ Redistributable (x64), then reinstall torch"
    elif "libcu" in last or "libnv" in last:
        advice = f"parts of CUDA are missing: reinstall torch as {SELECTOR} says"
    else:
        advice = f"reinstall torch as {SELECTOR} says"
    return Finding("problem", "torch", text, advice)


def judged(said: Mapping[str, Any], makers: Collection[str]) -> list[Finding]:
    """said: the facts of `torch_child`. makers: whose cards' drivers are here, see `machine.cards`."""
    found = [Finding("ok", "torch", f"{said['version']} ({said['build']}), imported in {said['seconds']} s")]
    if fault := said.get("torchvision"):
        text = f"torchvision cannot be imported beside this torch: {fault}"
        found.append(
            Finding("problem", "torchvision", text, "pip uninstall torchvision; Loraloom needs none")
        )
    devices: list[dict[str, Any]] = said["devices"]
    for device in devices:
        found += _of_device(device, device["name"].partition(":")[0] == said["auto"], said)
    if said["auto"] == "cpu":
        found.append(_only_processor(said, makers))
    if said["auto"] == "cuda" and "ROCm" not in said["build"] and not _has_kernels():
        text = "int8 and fp8 weights are multiplied without comfy-kitchen's kernels"
        found.append(Finding("slow", "kernels", text, install("cuda")))
    return found


def _of_device(device: Mapping[str, Any], used: bool, said: Mapping[str, Any]) -> list[Finding]:
    about = f"device {device['name']}"
    if fault := device["fault"]:
        advice = f"this torch may be too old or too new for it: choose another build at {SELECTOR}"
        return [Finding("problem" if used else "note", about, f"does not compute: {fault}", advice)]
    kind = "bfloat16" if device["bfloat16"] else "float32"
    use = "is what --device auto takes; " if used else ""
    if device["name"] == "cpu":
        found = [Finding("ok", about, f"{use}{_processor()}, {said['cpu']}; computes in {kind}")]
        return found + (_threads(said["threads"]) if used else [])
    text = f"{use}computes in {kind}"
    if "total" in device:
        text = f"{device['title']}, {gigabytes(device['total'])}, {gigabytes(device['free'])} free; {text}"
    return [Finding("ok", about, text), *(_slow_card(device, about) if used else [])]


def _slow_card(device: Mapping[str, Any], about: str) -> list[Finding]:
    found: list[Finding] = []
    if device["name"] != "mps" and not device["bfloat16"]:
        text = "does not multiply bfloat16, so float32 is used, which takes twice the memory"
        found.append(Finding("slow", about, text, "--dtype fp16 is faster, where a model bears it"))
    total, free = device.get("total"), device.get("free")
    if total is None or free is None:
        return found
    if free < 0.6 * total:
        text = f"other programs hold {gigabytes(total - free)} of its memory"
        found.append(Finding("slow", about, text, "close them: what does not fit is fetched at every step"))
    elif total < _FEW_GIB:
        text = f"{gigabytes(total)} are enough for Stable Diffusion 1.5; layers of larger models are fetched"
        found.append(Finding("slow", about, text, "quantised files take less: `loraloom models quantize`"))
    return found


def _only_processor(said: Mapping[str, Any], makers: Collection[str]) -> Finding:
    """Why no graphics card is used."""
    wanted = "CUDA" if "nvidia" in makers else "ROCm" if "amd" in makers else None
    if wanted and wanted not in said["build"]:
        text = f"a card for {wanted} is here, and this torch is built for {said['build']}"
        return Finding("slow", "speed", text, f"install the build for {wanted} that {SELECTOR} names")
    if refused := said.get("refused"):
        return Finding("slow", "speed", f"torch finds no card: {refused}", "update the driver of the card")
    text = "no graphics card that torch can use: pictures of large models take minutes to hours"
    return Finding(
        "slow", "speed", text, "small models, few steps and small pictures; or a machine with a card"
    )


def _threads(count: int) -> list[Finding]:
    cores = psutil.cpu_count(logical=False) or count
    if count >= cores:
        return []
    text = f"torch uses {count} of {cores} cores"
    return [Finding("slow", "threads", text, "unset OMP_NUM_THREADS, or set it to the number of cores")]


def _processor() -> str:
    """The processor's name and cores, as far as the system tells."""
    name = platform.processor()
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
                name = next(
                    (line.partition(":")[2].strip() for line in file if line.startswith("model name")), name
                )
        except OSError:
            pass
    return f"{name or platform.machine()}, {psutil.cpu_count(logical=False) or '?'} cores"


def _has_kernels() -> bool:
    return importlib.util.find_spec("comfy_kitchen") is not None
