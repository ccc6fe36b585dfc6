"""Pipes, links in a circle and impossible names where files are expected: answered, never waited for."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.server.running import RunningServer

if sys.platform == "win32":
    pytest.skip("pipes are no files there", allow_module_level=True)


def pipe(path: Path) -> None:
    if sys.platform != "win32":
        os.mkfifo(path)


PIPES = ("output/p.png", "output/sub/q.webp", "input/i.png", "models/loras/pipe.safetensors")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(server: RunningServer) -> Path:
    for name in ("output/sub", "input", "models/loras"):
        (server.folder / name).mkdir(parents=True, exist_ok=True)
    for name in PIPES:
        pipe(server.folder / name)
    (server.folder / "output/loop.png").symlink_to("loop.png")
    (server.folder / "output/gone.png").symlink_to("nowhere.png")
    (server.folder / "output/good.png").write_bytes(picture())
    loras = server.folder / "models/loras"
    factors = {
        "lora_unet_x.lora_down.weight": torch.zeros(1, 4),
        "lora_unet_x.lora_up.weight": torch.zeros(4, 1),
    }
    save_file(factors, loras / "good.safetensors")
    for suffix in (".json", ".civitai.info", ".txt", ".preview.png", ".png"):
        pipe(loras / f"good{suffix}")
    server.http.timeout = 20
    return server.folder


@pytest.mark.parametrize("name", ["p.png", "sub/q.webp", "loop.png", "gone.png", "", "sub", "x" * 3000, "."])
def test_no_picture(server: RunningServer, folder: Path, name: str) -> None:
    for what in ("facts", "workflows", "thumbnail"):
        answer = server.http.get(f"/v1/pictures/{what}", params={"name": name})
        assert answer.status_code in (400, 404), (what, answer.text)
    for more in ({}, {"preview": "webp;80"}):
        assert server.http.get("/view", params={"filename": name, **more}).status_code in (400, 404)
    for what in ("delete", "restore"):
        assert server.http.post(f"/v1/pictures/{what}", json={"names": [name]}).status_code in (400, 404)


def test_others_are_served_meanwhile(server: RunningServer, folder: Path) -> None:
    listed = server.http.get("/v1/pictures").json()["pictures"]
    assert [picture["filename"] for picture in listed] == ["good.png"]
    answer = server.http.get("/v1/pictures/thumbnail", params={"name": "good.png"})
    assert Image.open(io.BytesIO(answer.content)).size == (8, 8)


def test_what_lies_beside_a_lora(server: RunningServer, folder: Path) -> None:
    page = server.http.get("/v1/loras/inspect", params={"name": "good.safetensors"})
    assert page.status_code == 200, page.text
    assert server.http.get("/v1/loras/hashes", params={"name": "good.safetensors"}).status_code == 200
    assert server.http.get("/v1/loras/preview", params={"name": "good.safetensors"}).status_code == 404
    assert server.http.get("/v1/loras/inspect", params={"name": "pipe.safetensors"}).status_code == 404
    for refused in (
        server.http.patch("/v1/loras", params={"name": "good.safetensors"}, json={"notes": "x"}),
        server.http.put("/v1/loras/preview", params={"name": "good.safetensors"}, content=picture()),
    ):
        assert refused.status_code == 400 and "no regular file" in refused.json()["detail"]
    for lora in server.http.get("/v1/loras").json()["loras"]:
        assert lora["name"] == "good.safetensors" or "not a regular file" in lora["problem"]


@pytest.mark.parametrize(
    "name", ["a" * 3000, "é" * 200, "x\0y", "a/" * 3000 + "b", "\u202e", ".", "..", "/", "CON"]
)
def test_impossible_names(server: RunningServer, folder: Path, name: str) -> None:
    for kind in ("checkpoints", "loras", "nothing"):
        asked = {"name": "good.safetensors", "base": name, "base_kind": kind}
        assert server.http.get("/v1/loras/inspect", params=asked).status_code < 500
    for path in ("/v1/loras/inspect", "/v1/loras/hashes", "/v1/loras/preview"):
        assert server.http.get(path, params={"name": name}).status_code in (400, 403, 404)
    graph = {
        "1": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": name}},
        "2": {"class_type": "LoadImage", "inputs": {"image": name}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": name}},
    }
    assert server.http.post("/prompt", json={"prompt": graph}).status_code in (200, 400)


def test_settings_that_are_a_pipe(server: RunningServer, folder: Path) -> None:
    place = folder / "user/default/comfy.settings.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    pipe(place)
    try:
        for answer in (server.http.get("/settings"), server.http.post("/settings", json={"a": 1})):
            assert answer.status_code == 503 and "settings" in answer.text
    finally:
        place.unlink()
    assert server.http.post("/settings", json={"a": 1}).status_code == 200
    assert server.http.get("/settings").json() == {"a": 1}


def test_paths_name_the_methods_of_the_schema(server: RunningServer) -> None:
    paths = server.http.get("/v1/openapi.json").json()["paths"]
    for path, operations in paths.items():
        if "{" in path:
            continue
        allowed = server.http.options(f"/v1{path}").headers["allow"].lower().split(", ")
        assert set(allowed) == set(operations), path
