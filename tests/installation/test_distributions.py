"""What is in the wheel and in the source distribution."""

from __future__ import annotations

import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from loraloom import __version__
from tests.installation.built import ROOT, Built, build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"))


def sources() -> set[str]:
    """Every file of the package, by its name below src/."""
    return {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "loraloom").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own == sources()
    assert {Path(name).name for name in names - own} >= {"METADATA", "LICENSE", "NOTICE", "entry_points.txt"}


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if not name.endswith("/")}
    assert {f"src/{name}" for name in sources()} <= names
    assert {"pyproject.toml", "LICENSE", "NOTICE", "CHANGELOG.md", "constraints.txt"} <= names
    assert not any(name.startswith("tests") for name in names)


def test_the_metadata_says_version_licence_extras_and_command(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(wheel.read(name).decode())
        commands = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert said["Version"] == __version__
    assert said["License-Expression"] == "Apache-2.0"
    assert {"ui", "cluster", "cuda", "dev"} <= set(said.get_all("Provides-Extra") or [])
    assert "loraloom = loraloom.cli.main:main" in commands
