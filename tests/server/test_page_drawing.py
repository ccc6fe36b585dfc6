"""Drawings and forms: what the page sends to be drawn, and what becomes of files with workflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.lora.small_files import write_small_lora
from tests.server.page_files import Start, models, picture, until
from tests.server.running import RunningServer

from loraloom.demo.files import WORKFLOW


def test_choices_name_what_there_is(server: RunningServer) -> None:
    write_small_lora(models(server) / "loras" / "a.safetensors")
    found = until(lambda: (c := server.http.get("/v1/draw/choices").json())["loras"] and c)
    assert found["bases"][0]["name"] == "base.safetensors"
    assert found["loras"] == ["a.safetensors"]
    assert "euler" in found["samplers"]
    assert "karras" in found["schedulers"]


def test_a_drawing_becomes_a_card_with_its_settings(start_server: Start) -> None:
    server = start_server("--paused")
    write_small_lora(models(server) / "loras" / "a.safetensors")
    loras = [{"name": "a.safetensors", "model": 0.5, "on": False}]
    asked = {"base": "base.safetensors", "prompt": "a rose", "seed": (1 << 64) - 1, "loras": loras}
    answer = server.http.post("/v1/draw", json=asked)
    assert answer.status_code == 201, answer.text
    card = answer.json()
    assert (card["title"], card["status"]) == ("a rose", "pending")
    assert card["settings"]["seed"] == (1 << 64) - 1
    assert card["settings"]["loras"] == [{"name": "a.safetensors", "model": 0.5, "clip": None, "on": False}]
    listed = server.http.get("/v1/cards").json()
    assert [c["id"] for c in listed["waiting"]] == [card["id"]]
    assert listed["paused"]
    assert server.http.post("/v1/cards/cancel").status_code == 204
    ended = server.http.get("/v1/cards").json()
    assert (ended["waiting_total"], ended["finished"][0]["status"]) == (0, "cancelled")
    assert server.http.post("/v1/cards/clear").status_code == 204
    assert server.http.get("/v1/cards").json()["finished_total"] == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"base": "base.safetensors", "nonsense": 1}, "no setting"),
        ({"base": "base.safetensors", "steps": "many"}, "steps"),
        ({"base": ""}, "no base model"),
        ({"base": "missing.safetensors"}, "missing.safetensors"),
        ({"base": "base.safetensors", "sampler": "magic"}, "magic"),
        ({"base": "base.safetensors", "width": -5}, "width"),
        ({"base": "../base.safetensors"}, "base.safetensors"),
        ({"base": "base.safetensors", "base_kind": "anything"}, "checkpoints"),
        ({"base": "base.safetensors", "loras": [{"name": "no.safetensors"}]}, "no.safetensors"),
    ],
)
def test_a_drawing_that_cannot_be_is_explained(
    server: RunningServer, asked: dict[str, Any], said: str
) -> None:
    models(server)
    answer = server.http.post("/v1/draw", json=asked)
    assert answer.status_code == 400
    assert said in answer.text


def test_a_picture_with_a_workflow_becomes_a_form(server: RunningServer) -> None:
    models(server)
    content = picture(workflow=WORKFLOW.read_text())
    answer = server.http.post("/v1/workflows?name=rose.png", content=content)
    assert answer.status_code == 200, answer.text
    (form,) = answer.json()["workflows"]
    assert form["settings"]["base"] == "loraloom-demo.safetensors"
    assert any("loraloom-demo.safetensors" in p["message"] for p in form["problems"])
    assert {s["class_type"] for s in form["sections"]} >= {"KSampler", "LoraLoader"}
    assert form["prompt"]["3"]["class_type"] == "CLIPTextEncode"


def test_a_page_with_two_workflows_becomes_two_forms(server: RunningServer) -> None:
    content = Path("examples/lora-tutorial.md").read_bytes()
    found = server.http.post("/v1/workflows?name=page.md", content=content).json()["workflows"]
    assert len(found) == 2
    assert all(form["sections"] for form in found)


@pytest.mark.parametrize("content", [b"", b"no workflow here", b"\x00\x01binary", picture()])
def test_a_file_without_a_workflow_is_refused_in_words(server: RunningServer, content: bytes) -> None:
    answer = server.http.post("/v1/workflows?name=x", content=content)
    assert answer.status_code == 400
    assert len(answer.json()["detail"]) > 10
