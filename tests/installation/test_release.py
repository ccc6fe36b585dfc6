"""The notes of a release, and what keeps a tree from being one."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loraloom import __version__
from tests.installation.built import ROOT

spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
assert spec is not None and spec.loader is not None
release: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)

CHANGELOG = """# Changelog

## 0.2.0 (unreleased)

### Added
- two

## 0.1.0 (2026-12-01)

### Added
- one
"""


def test_notes_are_the_versions_own_section() -> None:
    assert release.notes(CHANGELOG, "0.1.0") == "### Added\n- one\n"
    assert release.notes(CHANGELOG, "0.2.0", draft=True) == "### Added\n- two\n"


@pytest.mark.parametrize(
    ("changelog", "version", "words"),
    [
        (CHANGELOG, "0.2.0", "is unreleased"),
        (CHANGELOG, "0.3.0", "no section for 0.3.0"),
        ("# Changelog\n\n## soon\n", "0.1.0", "is no heading"),
    ],
)
def test_what_is_not_ready(changelog: str, version: str, words: str) -> None:
    with pytest.raises(release.NotReady, match=words):
        release.notes(changelog, version)


def test_this_tree_states_its_version_and_notes() -> None:
    assert release.version_of(ROOT) == __version__
    assert release.notes((ROOT / "CHANGELOG.md").read_text("utf-8"), __version__, draft=True)


def test_only_what_is_committed_is_released_and_once(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    with pytest.raises(release.NotReady, match="not committed"):
        release.check(tmp_path, "1.0")
    git("add", "file")
    git("commit", "-m", "one")
    release.check(tmp_path, "1.0")
    git("tag", "v1.0")
    with pytest.raises(release.NotReady, match=r"tag v1\.0"):
        release.check(tmp_path, "1.0")
