"""The gallery in the browser."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.server.browser import NewPage, needs_browser

from loraloom.workflow.drawing import DrawSettings, graph_of

pytestmark = needs_browser


def write_picture(folder: Path, name: str, color: str, prompt: str, age: float, seed: int = 77) -> None:
    settings = DrawSettings("loraloom-demo.safetensors", prompt, width=128, height=128, steps=3, seed=seed)
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph_of(settings).to_api()))
    path = folder / "output" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (128, 128), color).save(path, pnginfo=info)
    when = time.time() - age
    os.utime(path, (when, when))


@pytest.fixture(scope="module")
def pictures(folder: Path) -> None:
    write_picture(folder, "new.png", "red", "a new one <b>bold</b>", 10)
    write_picture(folder, "sub/old.png", "blue", "an old one", 5000)
    write_picture(folder, "middle.png", "green", "a middle one", 100)


def names(page: Any) -> list[str]:
    labels = page.locator(".tile").evaluate_all("tiles => tiles.map(t => t.getAttribute('aria-label'))")
    return [label.split(",")[0] for label in labels]


def test_from_the_newest_to_the_form(new_page: NewPage, pictures: None) -> None:
    watched = new_page()
    page = watched.open("/gallery")
    page.locator(".tile").first.wait_for()
    assert names(page) == ["new.png", "middle.png", "sub/old.png"]
    page.get_by_label("Search by file name").fill("old")
    assert names(page) == ["sub/old.png"]
    page.locator(".tile").click()
    page.get_by_text("an old one").wait_for()
    assert page.locator("dialog").get_by_text("77").count() == 1
    watched.check("picture-wide-light")
    page.get_by_role("button", name="Use these settings").click()
    page.get_by_label("Prompt", exact=True).wait_for()
    assert page.get_by_label("Prompt", exact=True).input_value() == "an old one"
    assert page.get_by_label("Seed", exact=True).input_value() == "77"


def test_arrows_step_through_the_pictures(new_page: NewPage, pictures: None) -> None:
    page = new_page().open("/gallery")
    page.get_by_role("button", name="new.png").click()
    title = page.locator("dialog h2").first
    assert title.inner_text() == "new.png"
    for key, name in (("ArrowRight", "middle.png"), ("ArrowRight", "old.png"), ("ArrowLeft", "middle.png")):
        page.keyboard.press(key)
        page.wait_for_function("name => document.querySelector('dialog h2').innerText === name", arg=name)
        page.locator("dialog .prompt-line").wait_for()
    assert page.locator("dialog .prompt-line").inner_text() == "a middle one"
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")


@pytest.mark.parametrize("size", ["phone", "wide"])
def test_tall_pictures_are_compared_whole(new_page: NewPage, folder: Path, size: str) -> None:
    place = folder / "output" / "tall"
    place.mkdir(parents=True)
    for name, color in (("left_00001_.png", "red"), ("right_00002_.png", "blue")):
        Image.new("RGB", (64, 192), color).save(place / name)
    watched = new_page(size)
    page = watched.open("/gallery")
    page.get_by_label("Search by file name").fill("tall/")
    page.get_by_role("button", name="Choose").click()
    for name in ("left", "right"):
        page.get_by_role("button", name=f"tall/{name}").click()
    page.get_by_role("button", name="Compare two").click()
    page.get_by_label("Seam between left_00001 and right_00002").wait_for()
    page.wait_for_function(
        "() => (one => one.clientHeight > 2.9 * one.clientWidth)(document.querySelector('.compare'))"
    )
    assert page.locator(".sheet-body").evaluate("body => body.scrollHeight - body.clientHeight") <= 1
    watched.check(f"compare-tall-{size}-light")
    shutil.rmtree(place)


def test_pictures_that_are_scrolled_past_are_given_up(
    new_page: NewPage, folder: Path, pictures: None
) -> None:
    many = folder / "output" / "many"
    many.mkdir()
    for index in range(300):
        Image.new("RGB", (16, 16), (index % 256, 0, 0)).save(many / f"{index:03}.png")
    page = new_page().open("/gallery")
    picture = page.wait_for_selector(".tile img[src]", state="attached")
    page.evaluate("document.querySelector('.wall').scrollTop = 1e9")
    page.wait_for_function("i => !i.isConnected && !i.hasAttribute('src')", arg=picture)
    shutil.rmtree(many)


def test_a_picture_opens_as_a_workflow(new_page: NewPage, pictures: None) -> None:
    page = new_page().open("/gallery")
    page.get_by_role("button", name="new.png").click()
    page.get_by_role("button", name="Open as workflow").click()
    page.get_by_role("button", name="Run workflow").wait_for()
    assert page.get_by_label("text", exact=True).first.input_value() == "a new one <b>bold</b>"


def test_two_pictures_side_by_side(new_page: NewPage, pictures: None) -> None:
    watched = new_page("phone", "dark")
    page = watched.open("/gallery")
    page.get_by_role("button", name="Choose").click()
    page.get_by_role("button", name="new.png").click()
    page.get_by_role("button", name="middle.png").click()
    page.get_by_role("button", name="Compare two").click()
    page.get_by_label("Seam between new and middle").wait_for()
    watched.check("gallery-compare-phone-dark")


def test_to_the_bin_and_back(new_page: NewPage, folder: Path, pictures: None) -> None:
    page = new_page().open("/gallery")
    page.get_by_role("button", name="middle.png").click()
    page.get_by_role("button", name="To the bin").click()
    page.get_by_role("button", name="middle.png").wait_for(state="detached")
    assert (folder / "output" / ".bin" / "middle.png").exists()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="middle.png").wait_for()
    page.get_by_role("button", name="middle.png").click()
    page.get_by_role("button", name="To the bin").click()
    page.get_by_role("button", name="middle.png").wait_for(state="detached")
    page.get_by_role("button", name="Bin", exact=True).click()
    page.get_by_role("button", name="middle.png").click()
    page.locator("dialog").get_by_role("button", name="Bring back").click()
    page.get_by_text("The bin is empty").wait_for()
    assert (folder / "output" / "middle.png").exists()


def test_a_seed_of_64_bits_stays_what_it_is(new_page: NewPage, folder: Path, http: httpx.Client) -> None:
    most = (1 << 64) - 1
    write_picture(folder, "seed.png", "white", "a cat", 1, seed=most)
    page = new_page().open("/gallery")
    page.get_by_role("button", name="seed.png").click()
    page.get_by_text(str(most)).wait_for()
    page.get_by_role("button", name="Use these settings").click()
    assert page.get_by_label("Seed", exact=True).input_value() == str(most)
    http.post("/v1/queue/pause")
    page.get_by_role("button", name="Draw Ctrl").click()
    page.get_by_text("The queue is paused").wait_for()
    assert http.get("/v1/cards").json()["waiting"][0]["settings"]["seed"] == most
    http.post("/v1/cards/cancel")
    http.post("/v1/queue/resume")
    (folder / "output" / "seed.png").unlink()


@pytest.mark.parametrize("size", ["phone", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_gallery_looks_right_everywhere(
    new_page: NewPage, pictures: None, size: str, scheme: str
) -> None:
    watched = new_page(size, scheme)
    page = watched.open("/gallery")
    page.locator(".tile img").first.wait_for()
    watched.check(f"gallery-{size}-{scheme}")
