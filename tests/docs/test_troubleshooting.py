"""The page of messages: each is a message of the program, and many are provoked here as a user would."""

from __future__ import annotations

import ast
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loraloom.cli.main import exit_code_of
from loraloom.demo.files import CHECKPOINT, LORAS, MODELS, WORKFLOW
from loraloom.jobs.lock import FolderLock
from tests.docs.blocks import DOCS, ROOT

HEADINGS = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
LORA = LORAS["pixel_art"].file


def pattern(message: str) -> re.Pattern[str]:
    """… stands for anything."""
    return re.compile(".*".join(map(re.escape, message.split("…"))))


def messages() -> Iterator[str]:
    """Every text in the source, with … for what is put in when the program runs."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_heading_is_a_message_of_the_program() -> None:
    known = [*dict.fromkeys(messages())]
    assert len(HEADINGS) == len(set(HEADINGS)) >= 40
    for heading in HEADINGS:
        wanted = pattern(heading)
        assert any(wanted.search(message) for message in known), f"no message says {heading!r}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORALOOM_MODELS", str(MODELS))
    return tmp_path


def api() -> dict[str, Any]:
    """The demo's workflow in API format, as far as the tests change it."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT.name}},
        "2": {
            "class_type": "LoraLoader",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": LORA.name,
                       "strength_model": 1.0, "strength_clip": 1.0},
        },
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "pixel_art"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {
            "class_type": "KSampler",
            "inputs": {"model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0],
                       "latent_image": ["5", 0], "seed": 1, "steps": 1, "cfg": 1,
                       "sampler_name": "euler", "scheduler": "normal", "denoise": 1},
        },
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "x"}},
    }  # fmt: skip


def written(name: str, content: str | bytes | Callable[[dict[str, Any]], object]) -> str:
    """A file with this content, or with the workflow as a function changes it."""
    if callable(content):
        graph = api()
        content(graph)
        content = json.dumps(graph)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def validate(change: Callable[[dict[str, Any]], object]) -> list[str]:
    return ["validate", written("graph.json", change)]


def dry(*changes: str) -> list[str]:
    return ["run", str(WORKFLOW), "--dry-run", *changes]


def bare_picture() -> list[str]:
    Image.new("RGB", (8, 8)).save("bare.png")
    return ["run", "bare.png"]


def latin() -> list[str]:
    graph = api()
    graph["3"]["inputs"]["text"] = "née"
    return ["run", written("latin.json", json.dumps(graph, ensure_ascii=False).encode("latin-1"))]


def busy_port() -> list[str]:
    held = socket.create_server(("127.0.0.1", 0))
    SOCKETS.append(held)
    return ["serve", "--port", str(held.getsockname()[1])]


def damaged_queue() -> list[str]:
    Path("user").mkdir()
    Path("user/queue.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    return ["serve", "--port", "0"]


def shared_folder() -> list[str]:
    lock = FolderLock(Path("user").absolute())
    lock.acquire(0)
    LOCKS.append(lock)
    return ["serve", "--port", "0"]


SOCKETS: list[socket.socket] = []
LOCKS: list[FolderLock] = []

PROVOKED: dict[str, tuple[int, Callable[[], list[str]]]] = {
    "… is a picture without a workflow": (2, bare_picture),
    "… holds no workflow": (2, lambda: ["run", written("a.txt", "nothing here")]),
    "… holds … workflows; choose with --workflow N or all": (
        2, lambda: ["run", str(ROOT / "examples/lora-tutorial.md")]),
    "… is not valid JSON": (2, lambda: ["run", written("a.json", '{"1": {"class_type": “SaveImage”}}')]),
    "… is not UTF-8 text": (2, latin),
    "… does not exist": (2, lambda: ["run", "nowhere.json"]),
    "Cannot execute because node … does not exist": (
        2, lambda: validate(lambda g: g["3"].update(class_type="Odd"))),
    "Value not in list": (2, lambda: dry("--set", "KSampler.sampler_name=DPM++ 2M Karras")),
    "Value … smaller than min of …": (2, lambda: validate(lambda g: g["6"]["inputs"].update(steps=0))),
    "… does not fit (…)": (2, lambda: dry("--set", "KSampler.steps=0")),
    "Prompt has no outputs": (2, lambda: validate(lambda g: g.pop("8"))),
    "… is not an assignment; expected NODE.input=value": (2, lambda: dry("--set", "steps")),
    "… has no input …": (2, lambda: dry("--set", "KSampler.step=1")),
    "… names … nodes; use one of their ids": (2, lambda: dry("--set", "CLIPTextEncode.text=x")),
    "the workflow has no node …": (2, lambda: dry("--set", "Nowhere.text=x")),
    "missing: …": (3, lambda: dry("--set", "CheckpointLoaderSimple.ckpt_name=other.safetensors")),
    "…: cut short: … of … bytes are there; download it again": (
        2, lambda: ["lora", "inspect", written("a.safetensors", LORA.read_bytes()[:-1000])]),
    "…: a Git LFS pointer, not the model itself": (
        2, lambda: ["lora", "inspect", written("a.safetensors", "version https://git-lfs.github.com/spec/v1\n")]),
    "…: a web page, not a model": (
        2, lambda: ["lora", "inspect", written("a.safetensors", "<!DOCTYPE html><html></html>")]),
    "…: a zip archive (PyTorch .ckpt/.pt?)": (
        2, lambda: ["lora", "inspect", written("a.safetensors", b"PK\x03\x04" + bytes(100))]),
    "…: no diffusion model that is known here": (
        2, lambda: ["lora", "inspect", str(LORA), "--base", str(LORA)]),
    "this LoRA answers to …, which its prompt does not say": (0, lambda: dry("--set", "3.text=a rose")),
    "its CLIP output is not connected": (
        0, lambda: validate(lambda g: g["3"]["inputs"].update(clip=["1", 1]))),
    "… is not ComfyUI's way to load a LoRA and stays plain text": (
        0, lambda: dry("--set", "3.text=pixel_art <lora:pixel_art:1>")),
    "its strengths are 0: it changes nothing": (
        0, lambda: dry("--set", "LoraLoader.strength_model=0", "--set", "LoraLoader.strength_clip=0")),
    "--base CHECKPOINT is needed": (2, lambda: ["lora", "convert", str(LORA), "--out", "b.safetensors"]),
    "… has no node that loads a model": (
        2, lambda: ["run", written("a.json", json.dumps({"1": {"class_type": "EmptyImage", "inputs": {}}})),
                    "--lora", LORA.name]),
    "… cannot be written: …": (2, lambda: ["convert", str(WORKFLOW), "--output", "."]),
    "… is in use by another program; choose another port": (2, busy_port),
    "… is in use by another server": (2, shared_folder),
    "--listen … lets other machines in": (2, lambda: ["serve", "--listen", "0.0.0.0"]),
    "the queue file … is damaged": (2, damaged_queue),
    "give a settings file, or both --data FOLDER and --base CHECKPOINT": (2, lambda: ["train"]),
}  # fmt: skip


@pytest.mark.parametrize("heading", PROVOKED)
def test_a_message_is_said(heading: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heading in HEADINGS
    expected, arguments = PROVOKED[heading]
    try:
        code = exit_code_of(arguments())
    finally:
        while SOCKETS:
            SOCKETS.pop().close()
        while LOCKS:
            LOCKS.pop().release()
    said = " ".join(capsys.readouterr().err.split())
    assert pattern(heading).search(said), said
    assert code == expected
