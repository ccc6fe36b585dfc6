"""The editor's templates: those that can run here are in the index, and none that cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tests.server.running import RunningServer, start

from loraloom.cli.serve import _text_types, with_ours  # pyright: ignore[reportPrivateUsage]
from loraloom.server import templates
from loraloom.server.page import package_folder
from loraloom.server.templates import Screen, Templates

FOLDER = package_folder("comfyui_workflow_templates_json", "templates")
installed = pytest.mark.skipif(FOLDER is None, reason="comfyui-workflow-templates-json is not installed")


def node(kind: str, *values: object, mode: int = 0) -> dict[str, Any]:
    return {"type": kind, "mode": mode, "widgets_values": [*values]}


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    def made(*nodes: dict[str, Any], **more: Any) -> bool:
        (tmp_path / "one.json").write_text(json.dumps({"nodes": [*nodes], **more}))
        return Screen(tmp_path, with_ours({}), _text_types()).runs("one")

    return made


def test_what_can_run(runs: Any) -> None:
    loader = node("CLIPLoader", "qwen_3_4b.safetensors", "lumina2", "default")
    assert runs(node("KSampler"), node("MarkdownNote", "hidream"), loader)
    assert runs(node("NoSuchClass", mode=2), node("NoSuchClass", mode=4))
    inner = {"id": "abc", "nodes": [node("KSampler")]}
    assert runs(node("abc"), definitions={"subgraphs": [inner]})


def test_what_cannot(runs: Any) -> None:
    assert not runs(node("KSampler"), node("NoSuchClass"))
    assert not runs(node("CLIPLoader", "umt5.safetensors", "wan", "default"))
    assert not runs(node("QuadrupleCLIPLoader", "a", "b", "c", "d"))
    inner = {"id": "abc", "nodes": [node("NoSuchClass")]}
    assert not runs(node("abc"), definitions={"subgraphs": [inner]})
    assert not runs("no node")


def test_one_that_is_not_there(tmp_path: Path) -> None:
    assert not Screen(tmp_path, {}, ()).runs("none")


def test_pictures_are_there_where_their_package_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "one-1.webp").write_bytes(b"RIFF")
    monkeypatch.setattr(
        templates, "package_folder", lambda name, _: tmp_path / name.rpartition("templates_")[2].split("_")[0]
    )
    with TestClient(Starlette(routes=Templates(frozenset).routes())) as client:
        found = client.get("/templates/one-1.webp")
        assert (found.content, found.headers["content-type"]) == (b"RIFF", "image/webp")
        assert client.get("/templates/one-2.webp").status_code == 404


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start(tmp_path_factory.mktemp("templates"))
    yield running
    running.end()


@installed
def test_the_index_names_what_the_server_has_classes_for(server: RunningServer) -> None:
    """The tiny server knows hardly any class, so nearly no template is left."""
    assert FOLDER is not None
    whole = json.loads((FOLDER / "index.json").read_text("utf-8"))
    left = server.http.get("/templates/index.json").json()
    assert sum(len(c["templates"]) for c in left) < sum(len(c["templates"]) for c in whole) / 10
    assert all(category["templates"] for category in left)
    assert server.http.get("/templates/index.zh.json").status_code == 200
    assert server.http.get("/templates/image_z_image_turbo.json").json()["nodes"]
    assert server.http.get("/templates/none.json").status_code == 404
    assert server.http.get("/templates/../page.py").status_code == 404


@installed
def test_of_the_installed_templates_those_of_our_families_are_left() -> None:
    assert FOLDER is not None
    screen = Screen(FOLDER, with_ours({}), _text_types())
    assert screen.runs("image_z_image_turbo") and screen.runs("sdxl_simple_example")
    assert not screen.runs("hidream_i1_fast") and not screen.runs("video_wan2_2_14B_t2v")
