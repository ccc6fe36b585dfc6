"""Builds what is published: wheel, source distribution, and the notes of this version from CHANGELOG.md.

usage: scripts/release.py [--draft] [--output DIR]

A version is released when CHANGELOG.md gives it a date (`## 0.1.0 (2026-12-01)`) and everything is committed.
--draft: builds this working tree as it is. Run it with a Python that has setuptools (`scripts/setup dev`).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
folder = sys.argv[1]
from setuptools import build_meta
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


class NotReady(Exception):
    """Why this tree is not released."""


def version_of(tree: Path) -> str:
    """The version that the package says of itself."""
    found = re.search(
        r'^__version__ = "([^"]+)"$', (tree / "src/loraloom/__init__.py").read_text("utf-8"), re.M
    )
    if found is None:
        raise NotReady("src/loraloom/__init__.py states no __version__")
    return found[1]


def notes(changelog: str, version: str, *, draft: bool = False) -> str:
    """What CHANGELOG.md says of a version, without its heading.

    Raises NotReady where it says nothing, or where the version has no date yet and this is no draft."""
    sections = re.split(r"^## ", changelog, flags=re.M)[1:]
    for section in sections:
        heading, _, body = section.partition("\n")
        found = re.fullmatch(r"(\S+) \((unreleased|\d{4}-\d{2}-\d{2})\)", heading.strip())
        if found is None:
            raise NotReady(f"CHANGELOG.md: {heading!r} is no heading such as '1.2.3 (2026-12-01)'")
        if found[1] == version:
            if found[2] == "unreleased" and not draft:
                raise NotReady(f"CHANGELOG.md: {version} is unreleased; write the date, or say --draft")
            return body.strip() + "\n"
    raise NotReady(f"CHANGELOG.md has no section for {version}")


def build(tree: Path, output: Path) -> None:
    """Wheel and source distribution of what git knows and what it does not ignore, built in a copy."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=tree, capture_output=True, check=True).stdout.decode().split("\0")
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, names):
            if not name.startswith("tests/") and (tree / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / name, Path(folder) / name)
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(output)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise NotReady(f"the build failed:\n{done.stderr[-3000:]}")


def check(tree: Path, version: str) -> None:
    """Everything is committed, and the version is new."""
    if subprocess.run(["git", "status", "--porcelain"], cwd=tree, capture_output=True, check=True).stdout:
        raise NotReady("there are changes that are not committed")
    tag = subprocess.run(["git", "tag", "--list", f"v{version}"], cwd=tree, capture_output=True, check=True)
    if tag.stdout:
        raise NotReady(f"there is a tag v{version} already: raise __version__")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Builds what is published.")
    parser.add_argument("--draft", action="store_true", help="build the working tree as it is")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    options = parser.parse_args(arguments)
    try:
        version = version_of(ROOT)
        text = notes((ROOT / "CHANGELOG.md").read_text("utf-8"), version, draft=options.draft)
        if not options.draft:
            check(ROOT, version)
        output: Path = options.output.absolute()
        output.mkdir(parents=True, exist_ok=True)
        build(ROOT, output)
    except NotReady as error:
        sys.exit(f"error: {error}")
    (output / f"notes-{version}.md").write_text(text, "utf-8")
    for path in sorted(output.glob(f"loraloom-{version}*")):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


if __name__ == "__main__":
    main(sys.argv[1:])
