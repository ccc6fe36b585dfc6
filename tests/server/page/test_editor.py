"""Our extension in the official editor: trigger words and receipts on LoRA nodes, pictures of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.server.browser import NewPage, keep, needs_browser
from tests.server.editor import serve

from loraloom.demo.files import WORKFLOW
from loraloom.server.page import package_folder

pytestmark = [
    *needs_browser,
    pytest.mark.skipif(
        package_folder("comfyui_frontend_package", "static") is None, reason="the extra 'ui' is not installed"
    ),
]
LORA = "window.app.graph.nodes.find(n => n.type === 'LoraLoader')"


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    Image.new("RGB", (64, 64), "teal").save(folder / "models" / "loras" / "pixel_art.preview.png")
    process, found = serve(folder)
    yield found
    process.terminate()
    process.wait(20)


def editor(page: Any, url: str) -> None:
    httpx.post(f"{url}/settings", json={"Comfy.TutorialCompleted": True})
    page.goto(url)
    page.wait_for_function(
        "() => window.app && window.app.graph && window.app.extensionManager", timeout=120_000
    )
    page.evaluate("w => window.app.loadGraphData(JSON.parse(w))", WORKFLOW.read_text())


def test_trigger_words_and_receipts_on_the_node(new_page: NewPage, url: str) -> None:
    page = new_page().page
    editor(page, url)
    label = f"() => {LORA}?.widgets.find(w => w.name === 'trigger words')?.label"
    page.wait_for_function(f"() => ({label})() === 'Insert: pixel_art'")
    prompt = "window.app.graph.getNodeById(3).widgets.find(w => w.name === 'text')"
    page.evaluate(f"() => {{ {prompt}.value = 'a red rose'; }}")
    page.evaluate(f"() => {LORA}.widgets.find(w => w.name === 'trigger words').callback()")
    page.wait_for_function(f"() => {prompt}.value === 'pixel_art, a red rose'")
    saved = page.evaluate("() => window.app.graph.serialize()")
    (lora,) = [node for node in saved["nodes"] if node["type"] == "LoraLoader"]
    assert lora["widgets_values"] == ["pixel_art.safetensors", 1, 1]
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    page.wait_for_function(
        f"() => {LORA}.widgets.find(w => w.name === 'receipt')?.label.startsWith('210/210 modules')",
        timeout=180_000,
    )
    keep(page, "editor-receipt")


def test_models_have_pictures(new_page: NewPage, url: str) -> None:
    page = new_page().page
    editor(page, url)
    with page.expect_response(lambda r: "/experiment/models/preview/loras/" in r.url) as answer:
        page.evaluate(
            "() => fetch(window.app.api.apiURL('/experiment/models/preview/loras/0/pixel_art.webp'))"
        )
    assert answer.value.status == 200
