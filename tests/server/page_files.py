"""What tests of the page's routes put into a server's folders, and wait for."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.server.running import RunningServer

Start = Callable[..., RunningServer]


def picture(color: str = "red", size: tuple[int, int] = (64, 48), **texts: str) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def models(server: RunningServer) -> Path:
    folder = server.folder / "models"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "base.safetensors").write_bytes(b"")
    return folder


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")


def write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def loras(server: RunningServer) -> dict[str, Any]:
    def found() -> Any:
        listed = server.http.get("/v1/loras?scan=true").json()
        return listed["read"] == listed["total"] and listed

    return {entry["name"]: entry for entry in until(found)["loras"]}
