"""The page in a real browser, for tests: a server with the demo's model, Chromium, and axe-core's checks.

Screenshots are kept where LORALOOM_SCREENSHOTS says, to be looked at.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from loraloom.demo.files import MODELS

CHROMIUM = Path(os.environ.get("LORALOOM_CHROMIUM", "/usr/bin/chromium"))
AXE = Path(sys.prefix) / "share" / "axe-core" / "axe.min.js"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"small": (320, 640), "phone": (390, 844), "table": (1000, 800), "wide": (1600, 1000)}
MILLISECONDS = 300_000

needs_browser = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None or not CHROMIUM.exists() or not AXE.exists(),
        reason="there is no browser to test with: scripts/setup browser",
    ),
]
NewPage = Callable[..., Any]


def demo_folder(folder: Path) -> Path:
    """A folder of its own for a server, with the demo's models in it."""
    shutil.copytree(MODELS, folder / "models")
    return folder


class Watched:
    """A page that takes note of everything that goes wrong in it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", self._hear)
        page.set_default_timeout(MILLISECONDS)

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def open(self, place: str) -> Any:
        """The page at "#/draw" and the like, once it stands."""
        self.page.goto(f"{self.url}/loraloom#{place}")
        self.page.wait_for_selector("main h1", state="attached")
        return self.page

    def check(self, name: str) -> None:
        """No error so far, nothing serious that axe finds, nothing that is too wide; a screenshot."""
        keep(self.page, name)
        assert self.problems == []
        assert serious(self.page) == []
        wider = self.page.evaluate("document.documentElement.scrollWidth > innerWidth + 1")
        assert not wider, f"{name} is wider than the window"


def serious(page: Any) -> list[str]:
    """What axe-core calls serious or critical."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}: {v['help']}: {node['html'][:160]}"
        for v in cast("list[dict[str, Any]]", found["violations"])
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


def keep(page: Any, name: str) -> None:
    folder = os.environ.get("LORALOOM_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
