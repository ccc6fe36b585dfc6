"""How people write an amount of memory."""

from __future__ import annotations

import pytest
import typer

from loraloom.cli.settings import memory_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 << 30), ("6.5g", 13 << 29), ("900M", 900 << 20), (" 12 GiB", 12 << 30), ("4096", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize(
    "text", ["9" * 400, "9" * 400 + "G", "٣G", "", "all", "-1G", "0", "8T", "G", "1e3", "8 G G"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="8G, 6.5G or 900M"):
        memory_size(text)
