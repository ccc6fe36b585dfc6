from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from loraloom.cli.display import print_receipts

RECEIPT: dict[str, Any] = {
    "name": "sub/style.safetensors",
    "matched": 3,
    "total": 5,
    "complete": False,
    "ignored": [{"reason": "for the text encoder", "modules": ["a", "b"]}],
    "unplaced": ["x"],
    "rejected": [{"module": "y"}],
    "unknown": [],
    "strength_model": 0.5,
    "strength_clip": None,
    "effects": [{"component": "model", "relative": 0.123}],
    "dialect": "kohya",
}


def shown(terminal: bool) -> str:
    stream = io.StringIO()
    print_receipts(Console(file=stream, force_terminal=terminal, width=120, color_system=None), (RECEIPT,))
    return stream.getvalue()


def test_a_log_gets_one_line_a_lora() -> None:
    assert shown(terminal=False) == (
        "LoRA sub/style.safetensors: strength model 0.5; placed 3/5; left out 2; not placed 2; "
        "‖ΔW‖/‖W‖ model 0.12; format kohya\n"
    )


def test_a_schedule_is_said_with_the_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = [{"start_percent": 0.0, "strength": 0.5}, {"start_percent": 0.25, "strength": 0.1}]
    monkeypatch.setitem(RECEIPT, "schedule", schedule)
    assert "strength model 0.5, 0.5 from 0%, 0.1 from 25%; placed" in shown(terminal=False)


def test_a_terminal_gets_a_table() -> None:
    said = shown(terminal=True)
    assert "LoRA receipts" in said and "3/5" in said and "model 0.5" in said
