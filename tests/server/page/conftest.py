"""A server with the demo's model, and pages of it in a browser."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.browser import CHROMIUM, FLAGS, SIZES, NewPage, Watched, demo_folder
from tests.server.editor import serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_folder(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    process, found = serve(folder, "--no-frontend")
    yield found
    process.terminate()
    process.wait(20)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright_api: Any = importlib.import_module("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def new_page(chromium: Any, url: str) -> Iterator[NewPage]:
    opened: list[Any] = []

    def make(size: str = "wide", scheme: str = "light") -> Watched:
        width, height = SIZES[size]
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        opened.append(context)
        return Watched(context.new_page(), url)

    yield make
    for context in opened:
        context.close()
