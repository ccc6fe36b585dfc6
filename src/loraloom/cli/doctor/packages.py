"""What pip was asked to install with Loraloom, and what is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from loraloom.cli.doctor.finding import Finding

NAME = "loraloom"
CLONE = Path(__file__).parents[4]
"""The repository, where Loraloom runs from one."""
EXTRAS: Mapping[str, str] = {
    "ui": "ComfyUI's own editor at the address of `loraloom serve`",
    "cluster": "several machines that drain one queue (`loraloom cluster`)",
    "cuda": "faster products of int8 and fp8 weights on NVIDIA cards",
}
"""What users may want an extra for; the others are for work on Loraloom itself."""


@dataclass(frozen=True, slots=True)
class Packages:
    """Versions of what Loraloom requires; None where a package is missing."""

    required: Mapping[str, str | None]
    extras: Mapping[str, bool]
    findings: tuple[Finding, ...]


def look() -> Packages:
    """The packages that this installation's own metadata names."""
    try:
        lines = metadata.requires(NAME) or []
        extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        note = Finding("note", "packages", "Loraloom runs from its source, and is not installed: not checked")
        return Packages({}, {}, (note,))
    return judged([Requirement(line) for line in lines], extras)


def judged(requirements: Sequence[Requirement], extras: Sequence[str]) -> Packages:
    """requirements: all of them, those of extras with a marker that says so."""
    needed = [r for r in requirements if _applies(r, "")]
    wrong = [said for r in needed if (said := _fault(r)) is not None]
    if wrong:
        names = " ".join(f'"{r.name}{r.specifier}"' for r in needed if _fault(r) is not None)
        again = f"--reinstall {NAME}" if _is_tool_of_uv() else names
        found = [Finding("problem", "packages", "; ".join(wrong), f"{installer()} {again}")]
    else:
        found = [Finding("ok", "packages", f"all {len(needed)} that are required")]
    states: dict[str, bool] = {}
    for extra in extras:
        parts = [r for r in requirements if _applies(r, extra) and not _applies(r, "")]
        if not parts:
            continue
        faults = [said for r in parts if (said := _fault(r)) is not None]
        states[extra] = not faults
        found += _of_extra(extra, faults)
    found += _upscaling()
    return Packages({r.name: _version(r.name) for r in needed}, states, tuple(found))


def _of_extra(extra: str, faults: Sequence[str]) -> list[Finding]:
    if not faults:
        return [Finding("ok", f"extra {extra}", "installed")]
    if extra not in EXTRAS:
        return []
    return [Finding("note", f"extra {extra}", f"{EXTRAS[extra]}: {'; '.join(faults)}", install(extra))]


def install(extra: str) -> str:
    """The command that adds an extra to this installation."""
    return f"scripts/setup {extra}" if _is_clone() else f'{installer()} "{NAME}[{extra}]"'


def installer() -> str:
    """The command that installs into this environment: a tool of uv's has no pip."""
    if _is_tool_of_uv():
        return "uv tool install"
    return ".venv/bin/pip install" if _is_clone() else "pip install"


def _is_tool_of_uv() -> bool:
    return (Path(sys.prefix) / "uv-receipt.toml").exists()


def _is_clone() -> bool:
    """Whether this is the environment that `scripts/setup` makes in the repository."""
    return (CLONE / "scripts/setup").is_file() and Path(sys.prefix).resolve() == (CLONE / ".venv").resolve()


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fault(requirement: Requirement) -> str | None:
    """What is wrong with a required package, or None."""
    found = _version(requirement.name)
    if found is None:
        return f"{requirement.name} is not installed"
    try:
        fits = requirement.specifier.contains(Version(found), prereleases=True)
    except InvalidVersion:
        return f"{requirement.name} has the version {found!r}, which is none"
    return None if fits else f"{requirement.name} is {found}, and {requirement.specifier} is required"


def _upscaling() -> list[Finding]:
    """spandrel is no extra: it asks for torchvision, for which pip may replace torch by another build."""
    lacking = [name for name in ("spandrel", "einops") if _version(name) is None]
    if not lacking:
        return [Finding("ok", "upscale models", "spandrel is installed")]
    into = f"uv pip install --python {sys.prefix}" if _is_tool_of_uv() else installer()
    advice = f"{into} --no-deps spandrel einops"
    return [Finding("note", "upscale models", f"need what is not installed: {', '.join(lacking)}", advice)]
