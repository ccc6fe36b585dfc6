"""ComfyUI's own editor in a real browser, on `loraloom serve` with narrow random-weight models.

Screenshots are kept where LORALOOM_SCREENSHOTS says, to be looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from tests.demo_models import write_demo_models
from tests.server.editor import serve
from tests.server.running import ROOT

from loraloom.server.page import package_folder
from loraloom.workflow.sources import read_source

playwright_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path(os.environ.get("LORALOOM_CHROMIUM", "/usr/bin/chromium"))
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no Chromium at {CHROMIUM}"),
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
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


def _shot(page: Any, name: str) -> None:
    folder = os.environ.get("LORALOOM_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


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
            "window.app && window.app.graph && window.app.extensionManager", timeout=90_000
        )
        page.evaluate("w => window.app.loadGraphData(w)", _tutorial())
        page.wait_for_timeout(2_000)
        _shot(page, "1-workflow")
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
            timeout=30_000,
        )
        page.wait_for_timeout(500)
        _shot(page, "2-picture")
        assert http.get("/jobs").json()["jobs"][0]["status"] == "completed"
        sidebar = "() => window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.{}')"
        page.evaluate(sidebar.format("assets"))
        page.wait_for_timeout(1_500)
        _shot(page, "3-queue")
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
        page.wait_for_function("() => window.seen.some(([k]) => k === 'progress')", timeout=60_000)
        _shot(page, "4-running")
        page.evaluate("() => window.app.api.interrupt()")
        page.wait_for_function("() => window.seen.some(([k]) => k === 'stopped')", timeout=60_000)
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
            "window.app && window.app.graph && window.app.extensionManager", timeout=90_000
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
            timeout=30_000,
        )
        _shot(page, "6-second-workflow")
    finally:
        page.close()
        process.terminate()
        process.wait(30)


def test_our_own_page_runs_a_workflow(models: Path, browser: Any) -> None:
    process, url = serve(models, "--no-frontend", "--user-dir", "user2")
    page = browser.new_page(viewport={"width": 1000, "height": 1200})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(url)
        page.fill("#workflow", json.dumps(_tutorial()))
        page.click("#run")
        page.wait_for_selector("#jobs strong:text('completed')", timeout=120_000)
        page.wait_for_function("() => [...document.querySelectorAll('#jobs img')].some(i => i.naturalWidth)")
        assert "1.5-dpo-LoRA" in page.inner_text("#jobs")
        _shot(page, "5-own-page")
        page.fill("#workflow", '{"1": {"class_type": "Nope", "inputs": {}}}')
        page.click("#run")
        page.wait_for_function("() => document.querySelector('#problem').textContent.includes('Nope')")
        page.reload()
        page.wait_for_selector("#jobs strong:text('completed')", timeout=20_000)
        assert problems == []
    finally:
        page.close()
        process.terminate()
        process.wait(30)
