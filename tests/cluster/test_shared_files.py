"""Files that come to a node once, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loraloom.cluster import shared_files
from loraloom.cluster.digests import Digests, digest_of
from loraloom.cluster.shared_files import Cache, FileSource, NotTheSame, Offer
from loraloom.errors import InputError
from loraloom.file_lock import try_lock
from loraloom.folders import ModelFolders
from loraloom.workflow.implemented import implemented_schemas

CONTENT = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "PIECE_BYTES", 1000)


class Head:
    def __init__(self, folder: Path, content: bytes = CONTENT) -> None:
        self.file = folder / "head/loras/people/hat.safetensors"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(content)
        (folder / "head/input").mkdir()
        (folder / "head/input/cat.png").write_bytes(b"a cat")
        folders = ModelFolders([folder / "head"], input_dir=folder / "head/input")
        self.offer = Offer(folders, implemented_schemas, Digests(folder / "digests.json"))
        self.source, self.pieces = FileSource(), 0

    def files(self, **more: Any) -> list[dict[str, Any]]:
        prompt: dict[str, Any] = {
            "1": {"class_type": "LoraLoader", "inputs": {"lora_name": "people/hat.safetensors"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
            "3": {"class_type": "LoraLoader", "inputs": {"lora_name": "only on nodes.safetensors"}},
        }
        found = self.offer.of(prompt)
        for file, path in found:
            self.source.offer(file.digest, str(path))
        return [{**file.to_json(), **more} for file, _ in found]

    async def fetch(self, digest: str, offset: int) -> bytes:
        self.pieces += 1
        return self.source.read(digest, offset)


def node(folder: Path, name: str = "node") -> Cache:
    (folder / name).mkdir(exist_ok=True)
    return Cache(folder / name, folder / f"{name}-input", ModelFolders([folder / "own"]))


def test_a_file_comes_once_and_is_the_same(tmp_path: Path) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    asyncio.run(cache.provide(head.files(), head.fetch))
    assert (tmp_path / "node/loras/people/hat.safetensors").read_bytes() == CONTENT
    assert (tmp_path / "node-input/cat.png").read_bytes() == b"a cat"
    pieces = head.pieces
    assert pieces == 7
    asyncio.run(cache.provide(head.files(), head.fetch))
    asyncio.run(node(tmp_path).provide(head.files()[:1], head.fetch))
    assert head.pieces == pieces


def test_a_file_that_the_node_has_is_not_fetched_and_another_of_that_name_is(tmp_path: Path) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    own = tmp_path / "own/loras/people/hat.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(CONTENT)
    asyncio.run(cache.provide(head.files()[:1], head.fetch))
    assert head.pieces == 0
    own.write_bytes(CONTENT[::-1])
    asyncio.run(cache.provide(head.files()[:1], head.fetch))
    assert (tmp_path / "node/loras/people/hat.safetensors").read_bytes() == CONTENT
    assert own.read_bytes() == CONTENT[::-1]


def test_a_file_that_changed_on_the_head_comes_anew(tmp_path: Path) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    asyncio.run(cache.provide(head.files(), head.fetch))
    head.file.write_bytes(b"new")
    asyncio.run(cache.provide(head.files(), head.fetch))
    assert (tmp_path / "node/loras/people/hat.safetensors").read_bytes() == b"new"


@pytest.mark.parametrize("how", ["damaged", "short", "gone"])
def test_what_does_not_come_whole_has_no_name(tmp_path: Path, how: str) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    files = head.files()[:1]

    async def fetch(digest: str, offset: int) -> bytes:
        if how == "gone" and offset:
            raise OSError("the link is cut")
        piece = await head.fetch(digest, offset)
        return (
            piece[:-1] if how == "short" else piece.replace(b"\x07", b"\x08") if how == "damaged" else piece
        )

    with pytest.raises((NotTheSame, OSError)):
        asyncio.run(cache.provide(files, fetch))
    assert [p.name for p in (tmp_path / "node/loras/people").iterdir()] == []
    asyncio.run(cache.provide(files, head.fetch))
    assert (tmp_path / "node/loras/people/hat.safetensors").read_bytes() == CONTENT


def test_two_workers_of_a_node_fetch_a_file_once(tmp_path: Path) -> None:
    head = Head(tmp_path)
    files = head.files()[:1]

    async def both() -> None:
        await asyncio.gather(*(node(tmp_path).provide(files, head.fetch) for _ in range(2)))

    asyncio.run(both())
    assert head.pieces == 6


def test_what_another_process_of_the_node_fetches_is_waited_for(tmp_path: Path) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    files = head.files()[:1]

    async def waits() -> None:
        with open(tmp_path / f"node/.{files[0]['digest']}.lock", "ab") as other:
            assert try_lock(other)
            fetching = asyncio.create_task(cache.provide(files, head.fetch))
            await asyncio.sleep(0.2)
            assert not fetching.done() and not head.pieces
        await fetching

    asyncio.run(waits())
    assert head.pieces


@pytest.mark.parametrize(
    "more", [{"name": "../x"}, {"kind": "configs/../x"}, {"kind": "input", "name": "/etc/x"}]
)
def test_no_file_leads_out(tmp_path: Path, more: dict[str, Any]) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    with pytest.raises(InputError):
        asyncio.run(cache.provide(head.files(**more, digest="0" * 64)[:1], head.fetch))


def test_only_what_is_offered_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        FileSource().read(str(tmp_path), 0)


def test_a_folder_of_pictures_comes_whole_and_with_nothing_else(tmp_path: Path) -> None:
    head, cache = Head(tmp_path), node(tmp_path)
    pictures = tmp_path / "head/input/things/2_red"
    pictures.mkdir(parents=True)
    for name in ("a.png", "a.txt", "b.png", "notes.md"):
        (pictures / name).write_bytes(name.encode())
    prompt: dict[str, Any] = {"1": {"class_type": "LoraloomTrainLora", "inputs": {"pictures": "things"}}}

    def provided() -> list[str]:
        found = head.offer.of(prompt)
        for file, path in found:
            head.source.offer(file.digest, str(path))
        files = [file.to_json() for file, _ in found]
        asyncio.run(cache.provide(files, head.fetch))
        cache.forget_others(files)
        return sorted(p.name for p in (tmp_path / "node-input/things/2_red").iterdir())

    assert provided() == ["a.png", "a.txt", "b.png"]
    (pictures / "b.png").unlink()
    assert provided() == ["a.png", "a.txt"]


def test_what_a_killed_worker_fetched_in_part_is_written_over(tmp_path: Path) -> None:
    head, folder = Head(tmp_path), tmp_path / "node/loras/people"
    files = head.files()[:1]

    async def killed(digest: str, offset: int) -> bytes:
        if offset:  # a copy of what lies there now is what a kill would leave
            left.update({p.name: p.read_bytes() for p in folder.iterdir()})
            raise OSError("killed")
        return await head.fetch(digest, offset)

    left: dict[str, bytes] = {}
    with pytest.raises(OSError, match="killed"):
        asyncio.run(node(tmp_path).provide(files, killed))
    assert left
    for name, content in left.items():
        (folder / name.replace(str(os.getpid()), "1")).write_bytes(content)
    asyncio.run(node(tmp_path).provide(files, head.fetch))
    assert [p.name for p in folder.iterdir()] == ["hat.safetensors"]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
CUT = """
import sys
from pathlib import Path
from loraloom.cluster.digests import digest_of
print("begun", flush=True)
print(len(digest_of(Path(sys.argv[1]))), flush=True)
"""


def test_a_file_that_is_cut_short_while_it_is_read_does_not_end_the_process(tmp_path: Path) -> None:
    file = tmp_path / "large.safetensors"
    with open(file, "wb") as sparse:
        sparse.truncate(4 << 30)
    process = subprocess.Popen(
        [sys.executable, "-c", CUT, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    os.truncate(file, 0)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "64\n"), error


def test_a_digest_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    """Also when it was written over within one tick of the clock, and where its time was kept."""
    digests, file = Digests(tmp_path / "digests.json"), tmp_path / "a.png"
    for number in range(60):
        file.write_bytes(b"%04d" % number)
        os.utime(file, ns=(1, 1))
        assert digests.of(file) == digest_of(file)


def test_a_peft_lora_comes_with_the_file_that_has_its_scale(tmp_path: Path) -> None:
    """Both from the head: the node's own config may be that of another LoRA."""
    head, cache = Head(tmp_path), node(tmp_path)
    for root, scale in ((tmp_path / "head", b"8"), (tmp_path / "own", b"4")):
        (root / "loras/hat").mkdir(parents=True)
        (root / "loras/hat/adapter_model.safetensors").write_bytes(CONTENT)
        (root / "loras/hat/adapter_config.json").write_bytes(scale)
    prompt: dict[str, Any] = {
        "1": {"class_type": "LoraLoader", "inputs": {"lora_name": "hat/adapter_model.safetensors"}}
    }
    found = head.offer.of(prompt)
    for file, path in found:
        head.source.offer(file.digest, str(path))
    assert [file.name for file, _ in found] == ["hat/adapter_model.safetensors", "hat/adapter_config.json"]
    asyncio.run(cache.provide([file.to_json() for file, _ in found], head.fetch))
    fetched = tmp_path / "node/loras/hat"
    assert (fetched / "adapter_model.safetensors").read_bytes() == CONTENT
    assert (fetched / "adapter_config.json").read_bytes() == b"8"
    pieces = head.pieces
    asyncio.run(cache.provide([file.to_json() for file, _ in found], head.fetch))
    assert head.pieces == pieces
