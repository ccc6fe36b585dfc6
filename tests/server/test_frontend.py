"""ComfyUI's own editor in a real browser, on `loraloom serve` with narrow random-weight models.

Screenshots are kept where LORALOOM_SCREENSHOTS says, to be looked at.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from tests.demo_models import write_demo_models
from tests.server.browser import CHROMIUM, FLAGS, keep, needs_browser
from tests.server.editor import serve
from tests.server.running import ROOT

from loraloom.server.page import package_folder
from loraloom.workflow.sources import read_source

pytestmark = [
    *needs_browser,
    pytest.mark.skipif(
        package_folder("comfyui_frontend_package", "static") is None, reason="the extra 'ui' is not installed"
    ),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editor")
    write_demo_models(folder / "models")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright_api: Any = importlib.import_module("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


def _tutorial(number: int = 1) -> dict[str, Any]:
    """A workflow of the tutorial, small and quick."""
    found = read_source(ROOT / "examples" / "lora-tutorial.md")[number - 1]
    workflow = cast("dict[str, Any]", json.loads(json.dumps(found.data)))
    for node in workflow["nodes"]:
        if node["type"] in ("EmptyLatentImage", "EmptySD3LatentImage"):
            node["widgets_values"] = [64, 64, 1]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 4
    return workflow


def test_the_editor_loads_runs_shows_saves_and_cancels(models: Path, browser: Any) -> None:
    process, url = serve(models)
    http = httpx.Client(base_url=url, timeout=30)
    http.post("/settings", json={"Comfy.TutorialCompleted": True})
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(url)
        page.wait_for_function(
            "window.app && window.app.graph && window.app.extensionManager", timeout=120_000
        )
        page.evaluate("w => window.app.loadGraphData(w)", _tutorial())
        page.wait_for_timeout(2_000)
        keep(page, "editor-workflow")
        choices = page.evaluate(
            "() => window.app.graph.nodes.find(n => n.type === 'LoraLoader').widgets"
            ".find(w => w.name === 'lora_name').options.values"
        )
        assert "1.5/1.5-dpo-LoRA.safetensors" in choices
        page.evaluate(
            "() => { window.app.graph.nodes.find(n => n.type === 'LoraLoader').widgets"
            ".find(w => w.name === 'lora_name').value = '1.5/1.5-dpo-LoRA.safetensors'; window.seen = [];"
            "for (const kind of ['progress', 'executed', 'execution_success', 'execution_error',"
            " 'progress_state'])"
            "  window.app.api.addEventListener(kind, e => window.seen.push([kind, e.detail])); }"
        )
        page.evaluate("() => window.app.queuePrompt(0, 1)")
        page.wait_for_function(
            "() => window.seen.some(([k]) => k === 'execution_success' || k === 'execution_error')",
            timeout=120_000,
        )
        seen = page.evaluate("() => window.seen")
        kinds = [kind for kind, _ in seen]
        assert "execution_error" not in kinds, [d for k, d in seen if k == "execution_error"]
        assert "progress" in kinds
        assert "progress_state" in kinds
        executed = next(detail for kind, detail in seen if kind == "executed")
        assert executed["output"]["images"][0]["filename"].endswith(".png")
        page.wait_for_function(
            "() => window.app.graph.nodes.some(n => n.type === 'SaveImage' && n.imgs?.[0].naturalWidth)",
            timeout=120_000,
        )
        page.wait_for_timeout(500)
        keep(page, "editor-picture")
        assert http.get("/jobs").json()["jobs"][0]["status"] == "completed"
        sidebar = "() => window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.{}')"
        page.evaluate(sidebar.format("assets"))
        page.wait_for_timeout(1_500)
        keep(page, "editor-queue")
        page.evaluate(
            "async () => { await window.app.api.storeUserData('workflows/rose.json',"
            " window.app.graph.serialize(), { overwrite: true, stringify: true }); }"
        )
        saved = http.get("/userdata?dir=workflows&recurse=true&full_info=true").json()
        assert [entry["path"] for entry in saved] == ["rose.json"]
        assert http.get("/userdata/workflows%2Frose.json").json()["nodes"]
        page.evaluate(
            "() => { const g = window.app.graph.nodes; g.find(n => n.type === 'KSampler').widgets"
            ".find(w => w.name === 'steps').value = 4000; window.seen = [];"
            " window.app.api.addEventListener('execution_interrupted',"
            " e => window.seen.push(['stopped', e.detail]));"
            " return window.app.queuePrompt(0, 1); }"
        )
        page.wait_for_function("() => window.seen.some(([k]) => k === 'progress')", timeout=120_000)
        keep(page, "editor-running")
        page.evaluate("() => window.app.api.interrupt()")
        page.wait_for_function("() => window.seen.some(([k]) => k === 'stopped')", timeout=120_000)
        assert problems == []
    finally:
        page.close()
        http.close()
        process.terminate()
        process.wait(30)


def test_the_editor_runs_the_second_workflow(models: Path, browser: Any) -> None:
    process, url = serve(models, "--user-dir", "user3")
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    try:
        page.goto(url)
        page.wait_for_function(
            "window.app && window.app.graph && window.app.extensionManager", timeout=120_000
        )
        page.evaluate("w => window.app.loadGraphData(w)", _tutorial(2))
        page.wait_for_timeout(2_000)
        choices = page.evaluate(
            "() => window.app.graph.nodes.find(n => n.type === 'LoraLoaderModelOnly').widgets"
            ".find(w => w.name === 'lora_name').options.values"
        )
        assert "Flux.1/AWPortrait-FL-lora.safetensors" in choices
        page.evaluate(
            "() => { window.seen = []; for (const kind of ['execution_success', 'execution_error'])"
            "  window.app.api.addEventListener(kind, e => window.seen.push([kind, e.detail]));"
            "  return window.app.queuePrompt(0, 1); }"
        )
        page.wait_for_function("() => window.seen.length", timeout=120_000)
        ((kind, detail), *_) = page.evaluate("() => window.seen")
        assert kind == "execution_success", detail
        page.wait_for_function(
            "() => window.app.graph.nodes.some(n => n.type === 'SaveImage' && n.imgs?.[0].naturalWidth)",
            timeout=120_000,
        )
        keep(page, "editor-second-workflow")
    finally:
        page.close()
        process.terminate()
        process.wait(30)


def test_without_the_editor_our_own_page_is_at_the_root(models: Path, browser: Any) -> None:
    process, url = serve(models, "--no-frontend", "--user-dir", "user2")
    page = browser.new_page(viewport={"width": 1000, "height": 1200})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(url)
        page.get_by_label("Prompt", exact=True).wait_for()
        assert page.title() == "Draw · Loraloom"
        keep(page, "own-page")
        assert problems == []
    finally:
        page.close()
        process.terminate()
        process.wait(30)


def test_the_editor_offers_the_templates_that_can_run(models: Path, browser: Any) -> None:
    process, url = serve(models, "--user-dir", "user4")
    httpx.post(f"{url}/settings", json={"Comfy.TutorialCompleted": True})
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    try:
        page.goto(url)
        page.wait_for_function(
            "window.app && window.app.graph && window.app.extensionManager", timeout=120_000
        )
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        page.get_by_text("Z-Image-Turbo: Text to Image").first.wait_for(timeout=120_000)
        page.wait_for_timeout(2_000)
        keep(page, "editor-templates")
        assert page.get_by_text("Nano Banana").count() == 0
    finally:
        page.close()
        process.terminate()
        process.wait(30)
