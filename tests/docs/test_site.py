"""The documentation as a site: whole, every page in its navigation, nothing from elsewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import DOCS, ROOT

ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)")


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags for Python names mean nothing here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda _loader, suffix, _node: suffix)


def navigation(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(inner)


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), _Loader)
    listed = sorted(navigation(settings["nav"]))
    assert listed == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_pages_link_to_each_other() -> None:
    """A page's file name in a sentence is nothing that a reader of the site could click."""
    for page in DOCS.rglob("*.md"):
        assert not re.findall(r"`docs/[\w/]+\.md`", page.read_text("utf-8")), page.name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_asks_for_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        assert not ELSEWHERE.findall(page.read_text("utf-8")), page.name
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert "url(http" not in styles and "@import" not in styles


def test_the_site_works_in_a_folder_without_a_server(site: Path) -> None:
    """Links name files, and the index to search in is a script, which pages from a disk may load."""
    start = (site / "index.html").read_text("utf-8")
    assert not re.search(r'href="[^"#:]*/"', start)
    assert (site / "search/search_index.js").stat().st_size > 10_000
    assert "assets/iframe-worker.js" in start


def test_pictures_say_what_is_on_them() -> None:
    for page in DOCS.rglob("*.md"):
        for about, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text("utf-8")):
            assert len(about) > 10, f"{page.name}: {path} needs a description"
            assert (page.parent / path).is_file()


def test_the_pictures_are_small_and_used() -> None:
    pictures = list((DOCS / "pictures").iterdir())
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
    pages = "".join(page.read_text("utf-8") for page in DOCS.rglob("*.md"))
    assert all(f"pictures/{path.name})" in pages for path in pictures)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_one_script_draws_all_pictures_but_the_sheets_of_the_demo_s_recipe(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "scripts/tutorial_pictures.py"))["main"](tmp_path)
    there = {path.name for path in (DOCS / "pictures").iterdir() if not path.name.startswith("demo-")}
    assert {path.name for path in tmp_path.iterdir()} == there
