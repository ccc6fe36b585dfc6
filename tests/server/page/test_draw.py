"""Drawing in the browser, for real: on the demo's model."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.server.browser import NewPage, Watched, needs_browser

from loraloom.demo.files import WORKFLOW

pytestmark = needs_browser


ANOTHER = """before => {
  const picture = document.querySelector("article.result img.picture:not(.preview)");
  return picture && picture.complete && picture.naturalWidth && picture.getAttribute("src") !== before;
}"""
DROP = """([text, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
  document.querySelector(".desk").dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: data}));
}"""
FOCUSED = """() => {
  const element = document.activeElement;
  return element.getAttribute("aria-label") || element.innerText || element.id || element.tagName;
}"""


def add_lora(page: Any, name: str) -> None:
    page.get_by_role("button", name="Add LoRA").click()
    page.get_by_label("Search LoRAs").fill(name)
    page.locator(".pick").first.click()
    page.keyboard.press("Escape")


def set_up(watched: Watched, prompt: str, steps: int = 4) -> Any:
    """The desk with a prompt and few steps."""
    page = watched.open("/draw")
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Steps, number").fill(str(steps))
    page.get_by_label("Steps, number").press("Tab")
    return page


def draw(page: Any) -> None:
    """Press the button and wait for the picture."""
    press(page, re.compile("^Draw"))


def press(page: Any, name: str | re.Pattern[str]) -> None:
    """Press a button that draws, and wait for another picture than the one that is shown."""
    shown = page.locator("article.result img.picture:not(.preview)")
    before = shown.get_attribute("src") if shown.count() else None
    page.get_by_role("button", name=name).click()
    page.wait_for_function(ANOTHER, arg=before)


def test_a_picture_with_a_lora_its_words_and_its_receipt(new_page: NewPage, http: httpx.Client) -> None:
    watched = new_page()
    page = set_up(watched, "a red rose", steps=12)
    add_lora(page, "pixel")
    word = page.get_by_role("button", name="pixel_art", exact=True)
    word.click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "pixel_art, a red rose"
    assert word.get_attribute("aria-pressed") == "true"
    page.get_by_label("Strength of pixel_art, number").fill("0.8")
    page.get_by_label("Strength of pixel_art, number").press("Tab")
    page.get_by_role("button", name=re.compile("^Draw")).click()
    page.wait_for_selector("img.preview")
    assert page.get_by_text(re.compile(r"Step \d+ of 12")).count() == 1
    page.wait_for_selector("article.result img.picture:not(.preview)")
    assert page.locator("article.result").get_by_text("210 of 210 modules").count() >= 1
    assert "210 of 210 modules" in page.locator(".lora-row").inner_text()
    (card,) = http.get("/v1/cards").json()["finished"][:1]
    assert card["title"] == "pixel_art, a red rose"
    assert card["receipts"][0]["strength_model"] == 0.8
    watched.check("draw-wide-light")


def test_lora_off_order_and_removal(new_page: NewPage, http: httpx.Client) -> None:
    page = set_up(new_page(), "a cat")
    add_lora(page, "pixel")
    add_lora(page, "ink")
    page.get_by_role("button", name="Move ink up").click()
    names = page.locator(".lora-row a.lora-name").all_inner_texts()
    assert names == ["ink", "pixel_art"]
    assert page.evaluate(FOCUSED) == "Move ink up"  # although it can go no further
    page.get_by_label("ink: on").uncheck(force=True)
    draw(page)
    card = http.get("/v1/cards").json()["finished"][0]
    assert [r["name"] for r in card["receipts"]] == ["pixel_art.safetensors"]
    page.get_by_role("button", name="Remove ink").click()
    assert page.locator(".lora-row").count() == 1


def test_again_vary_and_with_and_without(new_page: NewPage, http: httpx.Client) -> None:
    watched = new_page(scheme="dark")
    page = set_up(watched, "pixel_art, a red apple")
    add_lora(page, "pixel")
    draw(page)
    first = http.get("/v1/cards").json()["finished"][0]["settings"]
    src = page.locator("article.result img.picture").get_attribute("src")
    page.get_by_role("button", name="Again").click()
    page.wait_for_function(ANOTHER, arg=src)
    second = http.get("/v1/cards").json()["finished"][0]["settings"]
    assert second["seed"] != first["seed"]
    assert {**second, "seed": 0} == {**first, "seed": 0}
    src = page.locator("article.result img.picture").get_attribute("src")
    page.get_by_role("button", name="Vary").click()
    page.wait_for_function(ANOTHER, arg=src)
    varied = http.get("/v1/cards").json()["finished"][0]
    assert varied["settings"]["start"].endswith(" [output]")
    assert (varied["status"], varied["settings"]["denoise"]) == ("completed", 0.6)
    page.reload()  # the newest is shown, without having been chosen
    page.get_by_role("button", name="With and without").wait_for()
    shown = page.locator("article.result img.picture").get_attribute("src")
    page.get_by_role("button", name="With and without").click()
    seam = page.get_by_label(re.compile("^Seam between"))
    seam.wait_for()
    before = page.locator(".compare").get_attribute("style")
    seam.press("ArrowRight")
    assert page.locator(".compare").get_attribute("style") != before
    assert page.evaluate(
        "[...document.querySelectorAll('.compare img')].every(i => i.complete && i.naturalWidth > 0)"
    )
    sides = [one.get_attribute("src") for one in page.locator(".compare img").all()]
    assert len(set(sides)) == 2 and shown in sides
    assert page.locator("article.result img.picture").get_attribute("src") == shown
    watched.check("compare-wide-dark")
    page.keyboard.press("Escape")
    assert page.locator("dialog").count() == 0


def test_a_grid_of_strengths(new_page: NewPage) -> None:
    watched = new_page()
    page = set_up(watched, "ink, a cat")
    add_lora(page, "ink")
    draw(page)
    page.get_by_role("button", name="Strengths", exact=True).click()
    page.wait_for_function(
        "() => document.querySelectorAll('.strengths img[alt]:not([alt=\"\"])').length === 6"
    )
    assert page.locator(".strengths li").all_inner_texts()[0].startswith("Without")
    watched.check("strengths-wide-light")
    lines = " ".join(watched.open("/queue").get_by_label("Finished").locator(".job").all_inner_texts())
    assert "ink 0.25" in lines and "ink 1.25" in lines
    page.get_by_role("button", name="Clear finished").click()
    page.get_by_text("Nothing in the queue").wait_for()
    page.go_back()
    page.get_by_text("not in the list any more").nth(5).wait_for()


@pytest.mark.parametrize("kind", ["json", "page", "png"])
def test_a_dropped_workflow_becomes_a_form_and_runs(new_page: NewPage, kind: str, http: httpx.Client) -> None:
    watched = new_page()
    page = watched.open("/draw")
    page.get_by_label("Prompt", exact=True).wait_for()
    text = WORKFLOW.read_text()
    if kind == "page":
        other = text.replace("rose", "tulip")
        text = f"<!doctype html>\n<h2>One</h2>\n<pre>{text}</pre>\n<h2>Two</h2>\n<pre>{other}</pre>"
    content = text.encode()
    if kind == "png":
        buffer, info = io.BytesIO(), PngInfo()
        info.add_text("workflow", text)
        Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
        content = buffer.getvalue()
    name = {"json": "rose.json", "page": "rose.html", "png": "rose.png"}[kind]
    page.evaluate(DROP, [base64.b64encode(content).decode(), name])
    page.get_by_role("button", name="Run workflow").wait_for()
    if kind == "page":
        chooser = page.get_by_label("2 workflows in this file")
        chooser.select_option(index=1)
    page.get_by_label("text", exact=True).first.fill("pixel_art, a heart")
    page.locator("summary", has_text="KSampler").wait_for()
    page.get_by_label("steps", exact=True).fill("3")
    page.get_by_label("steps", exact=True).press("Tab")
    watched.check(f"workflow-{kind}-wide-light")
    press(page, "Run workflow")
    page.locator(".prompt-line", has_text="pixel_art, a heart").wait_for()
    card = http.get("/v1/cards").json()["finished"][0]
    assert (card["title"], card["settings"]["steps"]) == ("pixel_art, a heart", 3)


def test_everything_can_be_done_with_the_keyboard(new_page: NewPage, http: httpx.Client) -> None:
    watched = new_page()
    page = set_up(watched, "a dog", steps=3)
    before = http.get("/v1/cards").json()["finished_total"]
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.wait_for_function(
        "async n => (await (await fetch('v1/cards')).json()).finished_total > n", arg=before
    )
    page.keyboard.press("Tab")
    seen: set[str] = set()
    for _ in range(80):
        found = page.evaluate(FOCUSED)
        seen.add(str(found).split("\n")[0])
        page.keyboard.press("Tab")
    assert {"Add LoRA", "Square", "Roll a seed", "Draw"} <= {s.strip() for s in seen} | {
        s.strip()[:4] for s in seen
    }


@pytest.mark.parametrize("size", ["phone", "table", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_desk_looks_right_everywhere(new_page: NewPage, size: str, scheme: str) -> None:
    watched = new_page(size, scheme)
    page = watched.open("/draw")
    page.get_by_role("button", name="Add LoRA").wait_for()
    page.wait_for_timeout(300)
    watched.check(f"draw-{size}-{scheme}")
    page.get_by_role("button", name="Add LoRA").click()
    page.locator(".pick").first.wait_for()
    watched.check(f"picker-{size}-{scheme}")


@pytest.mark.parametrize("size", ["small", "phone", "wide"])
def test_colours_are_chosen_everywhere_and_kept(new_page: NewPage, size: str) -> None:
    watched = new_page(size, "light")
    page = watched.open("/draw")
    ground = "getComputedStyle(document.body).backgroundColor"
    grounds = [page.evaluate(ground)]
    for name in ("light", "dark"):
        page.get_by_role("button", name=f"Use {name} colours").click()
        grounds.append(page.evaluate(ground))
    assert grounds[0] == grounds[1] != grounds[2]
    page.reload()
    page.wait_for_selector("main h1", state="attached")
    assert page.evaluate(ground) == grounds[2]
    page.get_by_role("button", name="Use the system's colours").wait_for()
    page.wait_for_timeout(300)
    watched.check(f"colours-{size}-dark")


def test_notices_leave_the_button_free(new_page: NewPage) -> None:
    page = new_page("phone").open("/draw")
    button = page.get_by_role("button", name=re.compile("^Draw"))
    button.wait_for()
    lowest = page.evaluate("document.querySelector('.notices').getBoundingClientRect().bottom")
    assert lowest <= button.bounding_box()["y"]


RATIO = """selector => {
  const {width, height} = document.querySelector(selector).getBoundingClientRect();
  return width / height;
}"""
WIDTH = "selector => document.querySelector(selector).getBoundingClientRect().width"


@pytest.mark.parametrize("size", ["phone", "wide"])
def test_a_picture_stays_where_its_preview_was(new_page: NewPage, size: str) -> None:
    watched = new_page(size, "dark")
    page = set_up(watched, "a cat", steps=8)
    page.get_by_label("Width", exact=True).fill("64")
    page.get_by_label("Height", exact=True).fill("192")
    page.get_by_label("Height", exact=True).press("Tab")
    page.get_by_role("button", name=re.compile("^Draw")).click()
    page.wait_for_selector(".stage .preview")
    before = page.evaluate(WIDTH, ".stage .preview")
    assert page.evaluate(RATIO, ".stage .preview") == pytest.approx(1 / 3, rel=0.02)
    page.wait_for_selector("article.result img.picture:not(.preview)")
    page.wait_for_function("() => document.querySelector('article.result img.picture').naturalWidth")
    assert page.evaluate(RATIO, ".stage .picture") == pytest.approx(1 / 3, rel=0.02)
    assert page.evaluate(WIDTH, ".stage .picture") == pytest.approx(before, abs=1)
    watched.check(f"tall-{size}-dark")


def test_names_are_text_never_markup(new_page: NewPage, http: httpx.Client) -> None:
    watched = new_page()
    page = set_up(watched, "<img src=x onerror=\"document.title='hit'\">", steps=2)
    draw(page)
    assert page.title() != "hit"
    assert page.locator(".prompt-line").inner_text().startswith("<img src=x")
    assert watched.problems == []
