"""The process that reads LoRA files for the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.lora.small_files import write_small_lora

from loraloom.errors import InputError
from loraloom.server.library_process import LibraryGone, LibraryProcess


def test_it_is_started_anew_after_its_end(tmp_path: Path) -> None:
    write_small_lora(tmp_path / "a.safetensors")

    async def story() -> None:
        library = LibraryProcess()

        async def listed() -> list[str]:
            found = await library.ask("list", since=0, scan=True, directories=[str(tmp_path)])
            return [entry["name"] for entry in found["loras"]]

        assert await listed() == ["a.safetensors"]
        with pytest.raises(InputError, match="no LoRA"):
            await library.ask("inspect", name="b.safetensors", directories=[str(tmp_path)])
        with pytest.raises(InputError, match="cannot be read"):
            await library.ask("nonsense")
        process = library._process  # pyright: ignore[reportPrivateUsage]
        assert process is not None
        process.kill()
        await process.wait()
        assert await listed() == ["a.safetensors"]
        await library.stop()

    asyncio.run(story())


def test_who_waits_for_a_process_that_ends_is_told() -> None:
    async def story() -> None:
        library = LibraryProcess("this")  # a module that prints its poem and ends
        with pytest.raises(LibraryGone):
            await library.ask("list")
        await library.stop()

    asyncio.run(story())


def test_it_imports_no_torch() -> None:
    code = "import sys, loraloom.cli.library_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_moved_or_taken_away_by_hand_is_noticed(tmp_path: Path) -> None:
    """Also by a process that never listed the folders, because the one before it did."""
    one, two = tmp_path / "one", tmp_path / "two"
    write_small_lora(one / "a.safetensors")
    write_small_lora(one / "copy.safetensors", metadata={"modelspec.title": "copy"})
    two.mkdir()
    folders: list[Any] = [str(one), str(two)]

    async def story() -> None:
        library = LibraryProcess()

        async def listed(since: int, scan: bool = False) -> dict[str, Any]:
            return await library.ask("list", since=since, scan=scan, directories=folders)

        version = (await listed(0, scan=True))["version"]
        until = time.monotonic() + 20
        while (found := await listed(0))["read"] < found["total"]:
            assert time.monotonic() < until
        same = await library.ask("hashes", name="a.safetensors", directories=folders)
        assert same["duplicates"] == ["copy.safetensors"]
        (one / "copy.safetensors").unlink()
        same = await library.ask("hashes", name="a.safetensors", directories=folders)
        assert same["duplicates"] == []
        (one / "a.safetensors").rename(two / "a.safetensors")
        page = await library.ask("inspect", name="a.safetensors", directories=folders)
        assert page["title"] == "Stable Diffusion 1.5"
        (base,) = await library.ask("bases", paths=[str(one / "gone.safetensors")])
        assert base["family"] == ""
        process = library._process  # pyright: ignore[reportPrivateUsage]
        assert process is not None
        process.kill()
        await process.wait()
        found = await listed(version)
        assert (found["whole"], [e["name"] for e in found["loras"]]) == (True, ["a.safetensors"])
        await library.stop()

    asyncio.run(story())
