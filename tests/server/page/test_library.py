"""The LoRA library in the browser, with ten thousand files in it."""

from __future__ import annotations

import hashlib
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.lora.small_files import write_small_lora
from tests.server.browser import NewPage, demo_folder, needs_browser
from tests.server.editor import serve

pytestmark = needs_browser
MANY = 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's models, and ten thousand small LoRAs in a hundred folders."""
    found = demo_folder(tmp_path_factory.mktemp("library"))
    loras = found / "models" / "loras"
    for index in range(MANY):
        write_small_lora(
            loras / f"set {index // 100:03}" / f"lora {index:05}.safetensors",
            "sdxl" if index % 5 == 0 else "sd15",
            rank=1,
            metadata={"modelspec.trigger_phrase": f"word{index}"},
            fill=index,
        )
    shutil.copy(loras / "pixel_art.safetensors", loras / "again.safetensors")
    picture = io.BytesIO()
    Image.new("RGB", (200, 200), "teal").save(picture, "PNG")
    (loras / "ink.preview.png").write_bytes(picture.getvalue())
    return found


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    process, found = serve(folder, "--no-frontend")
    with httpx.Client(base_url=found, timeout=120) as client:
        until = time.monotonic() + 200
        listed = client.get("/v1/loras").json()
        while listed["read"] < listed["total"] and time.monotonic() < until:
            time.sleep(0.5)
            listed = client.get("/v1/loras", params={"since": listed["version"]}).json()
        assert listed["total"] == MANY + 3
    yield found
    process.terminate()
    process.wait(20)


SCROLL = """async () => {
  const box = document.querySelector(".shelf");
  for (let step = 1; step <= 40; step++) {
    box.scrollTop = (box.scrollHeight - box.clientHeight) * step / 40;
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  }
}"""
FILTER = """async text => {
  const field = document.querySelector("input[type=search], input[aria-label='Search LoRAs']");
  field.value = text;
  field.dispatchEvent(new InputEvent("input", {bubbles: true}));
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
}"""


def busy(page: Any, script: str, argument: Any = None) -> float:
    """Milliseconds of processor time that the page's thread takes for a script: scripts, styles, layout,
    painting. Not of the clock: others use this machine too."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def task_seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(entry["value"] for entry in metrics if entry["name"] == "TaskDuration")

    before = task_seconds()
    page.evaluate(script, argument)
    after = task_seconds()
    session.detach()
    return 1000 * (after - before)


def ready(page: Any) -> None:
    page.get_by_text(f"of {MANY + 3:,} LoRAs").wait_for()


def test_ten_thousand_scroll_and_are_filtered(new_page: NewPage) -> None:
    watched = new_page()
    page = watched.open("/library")
    ready(page)
    assert page.locator(".shelf li").count() < 150
    per_frame = busy(page, SCROLL) / 40
    assert per_frame < 100, f"{per_frame:.0f} ms of work a frame while scrolling"
    assert page.get_by_text("lora 09999").count() == 1
    assert page.locator(".shelf li").count() < 150
    search = page.get_by_label("Search LoRAs")
    filtering = busy(page, FILTER, "word4321")
    assert filtering < 100, f"{filtering:.0f} ms of work to filter"
    page.get_by_text("1 of ").wait_for()
    assert page.locator(".shelf li").count() == 1
    search.fill("")
    page.evaluate(SCROLL)
    page.get_by_role("button", name="Does not fit").click()
    assert page.evaluate("document.querySelector('.shelf').scrollTop") == 0
    page.get_by_text(f"{MANY // 5:,} of ").wait_for()
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_label("Folder", exact=True).select_option(label="set 042 (100)")
    page.get_by_text("100 of ").wait_for()
    watched.check("library-wide-light")
    page.get_by_label("Folder", exact=True).select_option(index=0)
    page.get_by_role("button", name="Duplicates").click()
    page.get_by_text("2 of ").wait_for()
    names = page.locator(".shelf a.lora-name").evaluate_all("links => links.map(link => link.title)")
    assert sorted(names) == ["again.safetensors", "pixel_art.safetensors"]


def test_one_lora_inspected_noted_and_renamed(new_page: NewPage, folder: Path) -> None:
    watched = new_page()
    page = watched.open("/library/pixel_art.safetensors")
    page.get_by_text("model 192/192").wait_for()
    page.get_by_role("link", name="again.safetensors").wait_for()
    content = (folder / "models/loras/pixel_art.safetensors").read_bytes()
    page.get_by_text(hashlib.sha256(content).hexdigest()).wait_for()
    watched.check("lora-wide-light")
    page.get_by_label("Trigger words of your own").fill("pixel_art, big pixels")
    page.get_by_label("Notes", exact=True).fill("<i>best at 0.8</i>")
    page.get_by_label("Preferred strength").fill("0.8")
    page.get_by_role("button", name="Keep notes").click()
    word = page.get_by_role("button", name="big pixels")
    word.click()
    assert word.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Draw with it").click()
    assert page.get_by_label("Strength of pixel_art, number").input_value() == "0.8"
    assert page.get_by_label("Prompt", exact=True).input_value() == "big pixels"
    page.go_back()
    assert (folder / "models/loras/pixel_art.json").exists()
    picture = io.BytesIO()
    Image.new("RGB", (300, 200), "orange").save(picture, "JPEG")
    page.get_by_label("Preview picture").set_input_files(
        {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": picture.getvalue()}
    )
    page.get_by_alt_text("Preview of pixel_art").wait_for()
    page.get_by_label("File name, with its folder").fill("styles/pixels.safetensors")
    page.get_by_role("button", name="Rename").click()
    page.locator("main header", has_text="styles/pixels.safetensors").wait_for()
    page.get_by_role("link", name="Draw", exact=True).click()
    page.get_by_label("Strength of pixels, number").wait_for()
    assert watched.problems == []
    assert sorted(p.name for p in (folder / "models/loras/styles").iterdir()) == [
        "pixels.json", "pixels.preview.png", "pixels.safetensors",
    ]  # fmt: skip
    (folder / "models/loras/styles/pixels.safetensors").rename(folder / "models/loras/pixel_art.safetensors")


def test_from_the_library_to_a_drawing(new_page: NewPage) -> None:
    page = new_page().open("/library")
    ready(page)
    page.get_by_label("Search LoRAs").fill("ink")
    page.get_by_role("button", name="Draw with ink").click()
    page.get_by_role("link", name="Draw", exact=True).click()
    page.locator(".lora-row", has_text="ink").wait_for()
    page.get_by_role("button", name="ink", exact=True).click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "ink"


def test_a_grid_of_strengths_in_a_click(new_page: NewPage, http: httpx.Client) -> None:
    http.post("/v1/queue/pause")
    page = new_page().open("/library/ink.safetensors")
    page.get_by_role("button", name="Grid of strengths").click()
    page.get_by_role("heading", name="Strengths of ink").wait_for()
    waiting = http.get("/v1/cards").json()["waiting"]
    strengths = [[lora["model"] for lora in card["settings"]["loras"]] for card in waiting]
    assert strengths == [[0], [0.25], [0.5], [0.75], [1], [1.25]]
    assert len({card["settings"]["seed"] for card in waiting}) == 1
    http.post("/v1/cards/cancel")
    http.post("/v1/queue/resume")


@pytest.mark.parametrize("size", ["phone", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_library_looks_right_everywhere(new_page: NewPage, size: str, scheme: str) -> None:
    watched = new_page(size, scheme)
    page = watched.open("/library")
    ready(page)
    page.get_by_text("ink", exact=True).first.wait_for()
    watched.check(f"library-{size}-{scheme}")
    page = watched.open("/library/ink.safetensors")
    page.get_by_text("No other file has the same tensors.").wait_for()
    watched.check(f"lora-{size}-{scheme}")
