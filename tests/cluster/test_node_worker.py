"""What runs on a node for each worker, with a real worker process and without Ray."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.picture_runner import prompt

from loraloom import __version__
from loraloom.cluster import shared_files
from loraloom.cluster.digests import digest_of
from loraloom.cluster.node_worker import NodeWorker
from loraloom.cluster.ray_node import NODE_VARIABLE
from loraloom.cluster.scratch import Scratch, sweep
from loraloom.jobs.job import Request

HAT: dict[str, Any] = {"1": {"class_type": "ReadFile", "inputs": {"lora_name": "hat.safetensors"}}}


class Source:
    """The head's files, as Ray would give them; a `read` waits until it is let go on."""

    def __init__(self, content: bytes = b"a hat") -> None:
        self.content, self.go, self.asked = content, asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None
        self.read = self

    async def remote(self, digest: str, offset: int) -> bytes:
        self.asked.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.content[offset:]


class Played:
    """A worker, and what it says."""

    def __init__(self, worker: NodeWorker, source: Source, folder: Path) -> None:
        self.worker, self.source, self.folder = worker, source, folder
        self.seen = 0

    async def run(self, job: str, graph: dict[str, Any], *files: dict[str, Any]) -> None:
        request = Request(graph).to_json()
        order: dict[str, Any] = {"order": "run", "job": job, "request": request, "files": [*files]}
        await self.worker.send(order)

    async def until(self, *kinds: str) -> list[dict[str, Any]]:
        """What it says up to a message of these kinds."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while True:
                _, said = await self.worker.receive(self.seen)
                for number, message, _, _ in said:
                    self.seen = number
                    found.append(message)
                    if message["kind"] in kinds:
                        return found


def hat(folder: Path) -> dict[str, Any]:
    file = folder / "hat"
    file.write_bytes(b"a hat")
    return {"kind": "loras", "name": "hat.safetensors", "size": 5, "digest": digest_of(file)}


async def gone(folder: Path) -> None:
    """Wait until nothing lies in a folder."""
    async with asyncio.timeout(20):
        while [*folder.iterdir()]:
            await asyncio.sleep(0.02)


def play(
    folder: Path, monkeypatch: pytest.MonkeyPatch, test: Callable[[Played], Coroutine[Any, Any, None]]
) -> None:
    node = {"cache": str(folder / "cache"), "scratch": str(folder / "scratch"), "models": []}
    (folder / "scratch").mkdir()
    monkeypatch.setenv(NODE_VARIABLE, json.dumps(node))

    async def run() -> None:
        source = Source()
        worker = NodeWorker("tests.cluster.picture_runner:make", {}, __version__, source)
        await worker.start()
        played = Played(worker, source, folder)
        try:
            await played.until("ready")
            await test(played)
        finally:
            await worker.end()

    asyncio.run(run())


def test_a_job_is_cancelled_while_its_files_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played) -> None:
        await played.run("j", HAT, hat(tmp_path))
        await played.source.asked.wait()
        await played.worker.send({"order": "cancel", "job": "j"})
        said = await played.until("cancelled", "completed", "failed")
        assert [m["kind"] for m in said] == ["cancelled"] and said[0]["job"] == "j"
        await gone(tmp_path / "cache/loras")
        played.source.go.set()
        await played.run("k", HAT, hat(tmp_path))
        assert (await played.until("completed", "failed"))[-1]["kind"] == "completed"

    play(tmp_path, monkeypatch, test)


def test_a_cancel_right_after_the_job_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played) -> None:
        played.source.go.set()
        for graph, files in ((prompt(1, 30.0), []), (prompt(1, 30.0), [hat(tmp_path)])):
            await played.run("j", graph, *files)
            await played.worker.send({"order": "cancel", "job": "j"})
            assert (await played.until("cancelled", "completed"))[-1]["kind"] == "cancelled"

    play(tmp_path, monkeypatch, test)


def test_pieces_that_come_are_a_sign_of_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played) -> None:
        played.source.go.set()
        await played.run("j", HAT, hat(tmp_path))
        said = await played.until("completed", "failed")
        assert said[0] == {"kind": "fetching"} and said[-1]["kind"] == "completed"

    play(tmp_path, monkeypatch, test)


def test_a_file_that_the_head_cannot_give_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FromRay(Exception):
        """Like Ray's, whose text is a traceback in colours and whose cause is what was raised."""

        cause = FileNotFoundError(2, "No such file", "/models/hat.safetensors")

    async def test(played: Played) -> None:
        played.source.error = FromRay("\x1b[36mray::FileSource.read()\x1b[39m\nTraceback")
        played.source.go.set()
        await played.run("j", HAT, hat(tmp_path))
        message = (await played.until("failed"))[-1]["error"]["message"]
        assert "/models/hat.safetensors" in message and "\x1b" not in message and "\n" not in message

    play(tmp_path, monkeypatch, test)


def test_what_a_job_made_is_kept_in_pieces_until_the_head_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_files, "PIECE_BYTES", 100)

    async def test(played: Played) -> None:
        await played.run("j", prompt(1, 0.1, "Köln 猫/a b"))
        async with asyncio.timeout(60):
            while not any(files for _, _, _, files in (await played.worker.receive(played.seen))[1]):
                await asyncio.sleep(0.02)
        _, said = await played.worker.receive(played.seen)
        (number, files), *_ = [(number, files) for number, _, _, files in said if files]
        assert [entry["subfolder"] for entry, _ in files] == ["Köln 猫", ""]
        for _ in range(2):  # what did not arrive is asked for again
            for which, (_, size) in enumerate(files):
                pieces = [await played.worker.read((number, which), at) for at in range(0, size, 100)]
                assert (
                    len(pieces) > 1 and b"".join(pieces)[:4] == b"\x89PNG" and sum(map(len, pieces)) == size
                )
        await played.worker.receive(number)
        with pytest.raises(OSError, match=str(number)):
            await played.worker.read((number, 0), 0)
        (scratch,) = (tmp_path / "scratch").iterdir()
        assert not [*scratch.rglob("*.png")] and not [*(scratch / "leaving").iterdir()]

    play(tmp_path, monkeypatch, test)


def test_a_head_of_another_version_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODE_VARIABLE, json.dumps({"scratch": str(tmp_path)}))
    with pytest.raises(ValueError, match=f"this node has Loraloom {__version__}, the head 9.9.9"):
        NodeWorker("tests.cluster.picture_runner:make", {}, "9.9.9", None)
    assert [*tmp_path.iterdir()] == [], "it left nothing"


def test_the_folder_of_a_worker_goes_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(played: Played) -> None:
        assert len([*(tmp_path / "scratch").iterdir()]) == 1
        await played.run("j", prompt(1, 0.1, "x", "crash"))
        await played.until("ended")
        await gone(tmp_path / "scratch")

    play(tmp_path, monkeypatch, test)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
KEEPS = """
import sys, time
from loraloom.cluster.scratch import Scratch
folder = Scratch(sys.argv[1])
(folder.path / "input").mkdir()
print(folder.path, flush=True)
time.sleep(600)
"""


def test_what_a_killed_worker_has_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "loraloom-of another").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    with process:
        left = Path(process.stdout.readline().strip())
        sweep(str(tmp_path))
        assert (left / "input").is_dir()
        process.kill()
    own = Scratch(str(tmp_path))
    assert not left.exists() and own.path.is_dir()
    sweep(str(tmp_path))
    assert own.path.is_dir()
    own.end()
    assert [p.name for p in tmp_path.iterdir()] == ["loraloom-of another"]
