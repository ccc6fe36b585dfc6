"""Client packages of others, unchanged, against `loraloom serve`.

The Python ones are skipped where they are not installed; those for Node need LORALOOM_NODE_MODULES: a folder
in which `npm install @saintno/comfyui-sdk @stable-canvas/comfyui-client ws` was run.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.server.editor import serve

pytestmark = pytest.mark.heavy
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, found = serve(tmp_path_factory.mktemp("clients"), "--no-frontend")
    yield found
    process.terminate()
    process.wait(30)


def picture_workflow() -> dict[str, Any]:
    """A picture of a colour that no other test asks for."""
    number = next(_numbers)
    return {
        "1": {"class_type": "EmptyImage", "_meta": {"title": "Empty"},
              "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": number}},
        "2": {"class_type": "SaveImage", "_meta": {"title": "Save Image"},
              "inputs": {"images": ["1", 0], "filename_prefix": "client"}},
    }  # fmt: skip


def is_picture(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.size == (32, 16)


def package(name: str) -> Any:
    pytest.importorskip(name)
    return importlib.import_module(name)


def test_comfy_api_simplified(url: str) -> None:
    client = package("comfy_api_simplified")
    workflow = client.ComfyWorkflowWrapper(picture_workflow())
    images = client.ComfyApiWrapper(url).queue_and_wait_images(workflow, "Save Image")
    assert [is_picture(content) for content in images.values()] == [True]


def test_comfy_toolkit(url: str) -> None:
    client = package("comfy_toolkit").ComfyClient(url)
    assert client.is_online()
    images = client.wait_for_images(client.submit(picture_workflow()))
    assert [is_picture(client.download(image)) for image in images] == [True]
    assert client.queue_status() == {"running": 0, "pending": 0}


def test_comfyui_xy(url: str) -> None:
    client = package("comfyui_xy").ComfyUiClient(url)
    queued = client.queue_prompt(picture_workflow())
    prompt_id = queued["prompt_id"] if isinstance(queued, dict) else queued
    outputs = client.wait_for_execution(prompt_id, check_interval=0.1, timeout=30)
    found = client.extract_file_responses(outputs.get("outputs", outputs))
    assert len(found) == 1


def test_comfyui_utils(url: str) -> None:
    comfy = importlib.import_module("comfyui_utils.comfy") if package("comfyui_utils") else None
    api = comfy.ComfyAPI(url.removeprefix("http://"))  # pyright: ignore[reportOptionalMemberAccess]
    done: list[Any] = []

    class Callbacks(comfy.Callbacks):  # type: ignore[name-defined,misc]  # pyright: ignore
        async def queue_position(self, position: str) -> None:
            pass

        async def in_progress(self, node_id: int, progress: int, total: int) -> None:
            pass

        async def completed(self, outputs: dict[str, Any], cached: bool) -> None:
            async def keep(file: io.BytesIO) -> None:
                done.append(is_picture(file.read()))

            await api.fetch(outputs["images"][0], keep)

    asyncio.run(api.submit(picture_workflow(), Callbacks()))
    assert done == [True]


@pytest.mark.parametrize("script", ["saintno", "stable_canvas"])
def test_node_clients(url: str, script: str, tmp_path: Path) -> None:
    modules, node = os.environ.get("LORALOOM_NODE_MODULES"), shutil.which("node")
    if not modules or node is None:
        pytest.skip("LORALOOM_NODE_MODULES names no folder with the npm packages, or there is no node")
    copied = tmp_path / f"{script}.mjs"
    shutil.copy(Path(__file__).parent / "clients" / f"{script}.mjs", copied)
    (tmp_path / "node_modules").symlink_to(Path(modules) / "node_modules")
    call = [node, str(copied), url, json.dumps(picture_workflow())]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=90, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-1000:]
    images = json.loads(ran.stdout.strip().splitlines()[-1])
    assert len(images) == 1
