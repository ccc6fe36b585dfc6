"""The page about the families."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "index_families.py"))["page"]
    assert (ROOT / "docs" / "families.md").read_text("utf-8") == page(), "run scripts/index_families.py"
