"""LoRA files that are sent to the server, and the demo's model where there is none."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.lora.small_files import write_small_lora
from tests.server.running import RunningServer

from loraloom.demo.files import CHECKPOINT, MODELS

Start = Callable[..., RunningServer]


def send(server: RunningServer, name: str, content: bytes) -> httpx.Response:
    return server.http.post("/v1/loras", params={"name": name}, content=content)


def files(server: RunningServer) -> dict[str, bytes]:
    """What is in the models folder and in the temporary one."""
    roots = (server.folder / "models", server.folder / "user" / "temp", server.folder / "temp")
    return {path.name: path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()}


def listed(server: RunningServer, name: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = server.http.get("/v1/loras").json()["loras"]
        if known := [entry for entry in found if entry["name"] == name and entry["family"]]:
            return known[0]
        time.sleep(0.05)
    raise AssertionError(f"{name} is not listed")


def test_a_lora_that_is_sent_is_in_the_library(server: RunningServer, tmp_path: Path) -> None:
    first = write_small_lora(tmp_path / "a.safetensors").read_bytes()
    other = write_small_lora(tmp_path / "b.safetensors", fill=7).read_bytes()
    answer = send(server, "ink.safetensors", first)
    assert (answer.status_code, answer.json()) == (201, {"name": "ink.safetensors"})
    assert listed(server, "ink.safetensors")["family"] == "sd15"
    assert send(server, "loras\\ink.safetensors", first).json() == {"name": "ink.safetensors"}
    assert send(server, "ink.safetensors", other).json() == {"name": "ink (1).safetensors"}
    assert files(server) == {"ink.safetensors": first, "ink (1).safetensors": other}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.pt", pickle.dumps({"a": 1}), "convert"),
        ("x.safetensors", pickle.dumps({"a": 1}), "x.safetensors"),
        ("x.safetensors", b"", "x.safetensors"),
        ("x.safetensors", b"<html>not found</html>", "x.safetensors"),
        ("x.safetensors", CHECKPOINT.read_bytes()[:1_000_000], "x.safetensors"),
        ("x.safetensors", CHECKPOINT.read_bytes(), "x.safetensors"),
        ("x.txt", b"hello", "safetensors"),
        ("", b"hello", "safetensors"),
        ("../x\0.safetensors", b"hello", ""),
    ],
)
def test_what_is_no_lora_is_refused_in_words_and_leaves_nothing(
    server: RunningServer, name: str, content: bytes, said: str
) -> None:
    before = files(server)
    answer = send(server, name, content)
    assert answer.status_code in (400, 403), answer.text
    assert said in answer.json()["detail"]
    assert str(server.folder) not in answer.json()["detail"]
    assert files(server) == before


def test_a_name_leads_nowhere_else(server: RunningServer, tmp_path: Path) -> None:
    content = write_small_lora(tmp_path / "a.safetensors").read_bytes()
    for name in ("../../a.safetensors", "/etc/a.safetensors", "..\\a.safetensors"):
        assert send(server, name, content).status_code in (201, 400, 403)
    assert not [p for p in server.folder.rglob("a.safetensors") if p.parent != server.folder / "models/loras"]


def test_the_small_model_comes_where_models_are_looked_for(start_server: Start) -> None:
    server = start_server()
    assert server.http.get("/v1/draw/choices").json()["bases"] == []
    for _ in range(2):  # what is there already stays
        assert server.http.post("/v1/draw/demo").status_code == 204
    found = server.http.get("/v1/draw/choices").json()
    assert [base["name"] for base in found["bases"]] == [CHECKPOINT.name]
    assert Path(found["folder"]) == server.folder / "models"
    assert found["loras"] == sorted(path.name for path in (MODELS / "loras").iterdir())
