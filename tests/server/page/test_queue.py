"""The queue in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.server.browser import NewPage, needs_browser

pytestmark = needs_browser


def submit(http: httpx.Client, prompt: str, **more: Any) -> str:
    settings = {
        "base": "loraloom-demo.safetensors",
        "prompt": prompt,
        "width": 128,
        "height": 128,
        "steps": 2,
    }
    answer = http.post("/v1/draw", json={**settings, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_pause_reorder_cancel_retry_and_clear(new_page: NewPage, http: httpx.Client) -> None:
    http.post("/v1/queue/resume")
    watched = new_page()
    page = watched.open("/queue")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    for name in ("one", "two", "three"):
        submit(http, f"a cat, {name}")
    waiting = page.get_by_label("Waiting").locator(".job-title")
    page.get_by_text("a cat, three").wait_for()
    assert waiting.all_inner_texts() == ["a cat, one", "a cat, two", "a cat, three"]
    page.get_by_role("button", name="Draw next: a cat, three").click()
    page.wait_for_function(
        "() => document.querySelector('[aria-label=Waiting] .job-title').innerText === 'a cat, three'"
    )
    page.get_by_role("button", name="Later: a cat, three").click()
    page.wait_for_function(
        "() => document.querySelector('[aria-label=Waiting] .job-title').innerText === 'a cat, one'"
    )
    assert waiting.all_inner_texts() == ["a cat, one", "a cat, three", "a cat, two"]
    watched.check("queue-wide-light")
    page.get_by_role("button", name="Cancel: a cat, three").click()
    page.get_by_role("button", name="Retry: a cat, three").click()
    page.wait_for_function("() => document.querySelectorAll('[aria-label=Waiting] .job').length === 3")
    page.get_by_role("button", name="Resume").click()
    page.wait_for_function("() => !document.querySelector('[aria-label=Waiting]')")
    page.wait_for_function("() => document.querySelectorAll('[aria-label=Finished] img').length === 3")
    page.get_by_role("button", name="Clear finished").click()
    page.get_by_text("Nothing in the queue").wait_for()
    assert http.get("/v1/cards").json()["finished_total"] == 0


def test_one_stream_tells_of_all_jobs_in_all_views(new_page: NewPage, http: httpx.Client) -> None:
    """Browsers keep six connections to a server: with a stream for each job the page would stand still."""
    http.post("/v1/queue/pause")
    watched = new_page()
    asked: list[str] = []
    watched.page.on("request", lambda request: asked.append(request.url))
    page = watched.open("/queue")
    for number in range(8):
        submit(http, f"a cat, number {number}")
    page.get_by_text("a cat, number 7").wait_for()
    for place in ("/draw", "/library", "/queue"):
        watched.open(place)
    page.get_by_text("a cat, number 7").wait_for()
    http.post("/queue", json={"clear": True})
    page.wait_for_function("() => !document.querySelector('[aria-label=Waiting]')")
    http.post("/v1/queue/resume")
    assert [url for url in asked if "events" in url] == [f"{watched.url}/v1/events?previews=true"]


def test_an_error_is_in_words_with_what_to_do(new_page: NewPage, http: httpx.Client, folder: Path) -> None:
    http.post("/v1/queue/resume")
    watched = new_page()
    page = watched.open("/queue")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    (folder / "input").mkdir(exist_ok=True)
    picture = folder / "input" / "soon-gone.png"
    Image.new("RGB", (64, 64)).save(picture)
    submit(http, "a cat", start=picture.name, denoise=0.5)
    picture.unlink()
    page.get_by_role("button", name="Resume").click()
    alert = page.get_by_role("alert").first
    alert.wait_for()
    assert len(alert.inner_text()) > 30
    watched.check("queue-error-wide-light")


@pytest.mark.parametrize("size", ["phone", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_queue_looks_right_everywhere(
    new_page: NewPage, http: httpx.Client, size: str, scheme: str
) -> None:
    http.post("/v1/queue/pause")
    submit(http, "a long prompt that goes on and on, " * 6)
    submit(http, "a short one")
    watched = new_page(size, scheme)
    page = watched.open("/queue")
    page.get_by_text("a short one").first.wait_for()
    watched.check(f"queue-{size}-{scheme}")
    http.post("/v1/cards/cancel")
    http.post("/v1/queue/resume")
