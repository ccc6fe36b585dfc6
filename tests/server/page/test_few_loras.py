"""What lists and pages of LoRAs say of files that are alike or cannot be used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server.browser import NewPage, needs_browser

pytestmark = needs_browser


@pytest.fixture(autouse=True)
def more(folder: Path) -> Iterator[None]:
    """A copy of a LoRA whose title is not its name, and a file that is cut short."""
    loras = folder / "models" / "loras"
    shutil.copy(loras / "ink.safetensors", loras / "ink copy.safetensors")
    (loras / "cut.safetensors").write_bytes((loras / "ink.safetensors").read_bytes()[:200_000])
    yield
    for name in ("ink copy", "cut"):
        (loras / f"{name}.safetensors").unlink()


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
def test_files_that_are_alike_are_told_apart(new_page: NewPage, size: str, scheme: str) -> None:
    watched = new_page(size, scheme)
    page = watched.open("/library")
    page.get_by_role("button", name="Read the folder again").click()
    page.get_by_role("button", name="Show as a list").click()
    page.locator(".lora-line", has_text="cut").get_by_text("cut short: 200000 of").wait_for()
    page.locator(".lora-line", has_text="duplicate").nth(1).wait_for()
    names = page.locator(".lora-line .lora-name").all_inner_texts()
    assert sorted(names) == ["cut", "ink", "ink copy", "pixel_art"]
    watched.check(f"library-list-{size}-{scheme}")
    page = watched.open("/draw")
    page.get_by_role("button", name="Add LoRA").click()
    page.locator(".pick").nth(2).wait_for()
    names = page.locator(".pick .clip.block:first-child").all_inner_texts()
    assert sorted(names) == ["ink", "ink copy", "pixel_art"]


def test_a_file_that_cannot_be_used_says_so_and_no_more(new_page: NewPage) -> None:
    watched = new_page()
    page = watched.open("/library/cut.safetensors")
    page.get_by_role("alert").filter(has_text="cut short: 200000 of").wait_for()
    assert page.get_by_role("button", name="Draw with it").is_disabled()
    assert page.get_by_text("Reading the file").count() == 0
    watched.check("lora-cut-wide-light")


def test_kinds_and_types_are_spelled_as_everywhere(new_page: NewPage) -> None:
    page = new_page().open("/library/pixel_art.safetensors")
    file = page.locator("section", has=page.get_by_role("heading", name="The file"))
    file.get_by_text("fp16, ").wait_for()
    assert file.locator("div", has=page.get_by_text("Algebra", exact=True)).last.inner_text().split() == [
        "Algebra",
        "LoRA",
    ]
