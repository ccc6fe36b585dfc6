"""Training in the browser, for real: on the demo's model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.server.browser import NewPage, needs_browser

pytestmark = needs_browser


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the user's own computer."""
    place = tmp_path_factory.mktemp("mine") / "my things"
    place.mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (96, 96), color).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"a {color} thing")
    return place


CURVE = """async losses => {
  const {html, render} = await import("/loraloom/html.js");
  const {LossCurve} = await import("/loraloom/loss_curve.js");
  const place = document.querySelector("main").appendChild(document.createElement("div"));
  render(html`<${LossCurve} losses=${losses} validations=${[]} />`, place);
  const heights = path => place.querySelector(path).getAttribute("d").match(/[\\d.]+(?=[LM]|$)/g).map(Number);
  return {
    heights: heights(".curve-raw"),
    marks: [...place.querySelectorAll(".curve g text")].map(mark => mark.textContent),
    steps: [...place.querySelectorAll("tbody th")].map(step => Number(step.textContent)),
  };
}"""


def test_a_loss_curve_shows_its_peaks_and_its_numbers(new_page: NewPage) -> None:
    page = new_page().open("/training")
    losses = [[step, 0.1 + 0.01 * (step % 3)] for step in range(1, 41)]
    losses[19][1], losses[29][1] = 0.9, 0.7
    shown = page.evaluate(CURVE, losses)
    twentieth, thirtieth = shown["heights"][19], shown["heights"][29]
    assert 0 < twentieth < thirtieth < min(shown["heights"][30:])
    assert shown["marks"] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert shown["steps"] == list(range(4, 41, 4))
    losses[0][1] = 500.0  # alone, far above all others: they stay readable
    assert page.evaluate(CURVE, losses)["marks"] != shown["marks"]


def test_a_training_that_fails_says_what_to_do(new_page: NewPage, folder: Path) -> None:
    place = folder / "input" / "damaged"
    place.mkdir(parents=True)
    (place / "a.png").write_bytes(b"no picture")
    watched = new_page("phone", "dark")
    page = watched.open("/training")
    page.get_by_role("button", name="New training").click()
    page.get_by_label("Name of the LoRA").fill("damaged")
    page.get_by_role("button", name="Start training").click()
    alert = page.get_by_role("alert", name="").filter(has_text="a.png is not a picture that can be read")
    alert.wait_for()
    assert "go on" in alert.inner_text() and alert.inner_text().count("a.png") == 1
    page.get_by_text("It ended before there were numbers to show.").wait_for()
    watched.check("training-failed-phone-dark")
    shutil.rmtree(place)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Forget this training").click()
    page.get_by_role("button", name="New training").wait_for()


def test_from_a_folder_to_the_library(new_page: NewPage, pictures: Path, folder: Path) -> None:
    watched = new_page()
    page = watched.open("/training")
    page.get_by_text("No training yet").wait_for()
    page.get_by_role("button", name="New training").click()
    page.get_by_label("Pictures and captions").set_input_files(str(pictures))
    page.get_by_text("6 files are in the folder my things").wait_for()
    page.get_by_text("3 of 3 have a caption").wait_for()
    page.get_by_text("Still needed: a name.").wait_for()
    assert page.get_by_role("button", name="Start training").is_disabled()
    page.get_by_label("Name of the LoRA").fill("mything")
    page.get_by_label("Trigger word").fill("mythg")
    for label, value in (("Training steps", "8"), ("Resolution", "64"), ("Rank", "2")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Tab")
    page.get_by_text("More settings").click()
    page.get_by_label("Samples every so many steps", exact=True).fill("4")
    page.get_by_label("Samples every so many steps", exact=True).press("Tab")
    page.get_by_label("Sample prompts, one a line").fill("mythg, a red thing\nmythg, <b>bold</b>")
    watched.check("training-new-wide-light")
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("heading", name="mything").wait_for()
    page.get_by_role("link", name="In the library").wait_for(timeout=500_000)
    page.locator("svg.curve").wait_for()
    page.wait_for_function("() => document.querySelectorAll('.sample-strip img').length >= 4")
    watched.check("training-run-wide-light")
    page.set_viewport_size({"width": 320, "height": 640})
    widths = page.locator(".sample-strip img").evaluate_all("pictures => pictures.map(p => p.clientWidth)")
    assert set(widths) == {128}
    assert (folder / "models" / "loras" / "mything.safetensors").exists()
    page.get_by_role("button", name="Draw with it").click()
    page.locator(".lora-row", has_text="mything").wait_for()
    page.get_by_role("button", name="mythg", exact=True).wait_for()


def test_stop_and_go_on(new_page: NewPage, pictures: Path) -> None:
    watched = new_page("phone", "dark")
    page = watched.open("/training")
    page.get_by_role("button", name="New training").click()
    page.get_by_label("Pictures and captions").set_input_files(str(pictures))
    page.get_by_text("files are in the folder").wait_for()
    page.get_by_label("Name of the LoRA").fill("longer")
    for label, value in (("Training steps", "3000"), ("Resolution", "64"), ("Rank", "2")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Tab")
    page.get_by_role("button", name="Start training").click()
    page.locator("svg.curve").wait_for(timeout=300_000)
    watched.check("training-run-phone-dark")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Go on").click(timeout=300_000)
    page.get_by_role("button", name="Stop").click(timeout=300_000)
    page.get_by_role("button", name="Go on").wait_for(timeout=300_000)
    page.get_by_text("stopped", exact=True).first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_list_of_trainings_looks_right(new_page: NewPage, scheme: str) -> None:
    watched = new_page("wide" if scheme == "dark" else "phone", scheme)
    page = watched.open("/training")
    page.get_by_text("mything").first.wait_for()
    watched.check(f"trainings-{scheme}")
