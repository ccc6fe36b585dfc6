"""A server with the testing pack, and a client that follows one job as ComfyUI's editor does."""

from __future__ import annotations

import io
import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from tests.custom_nodes.conftest import CUSTOM_NODES
from tests.server.editor import serve

Graph = dict[str, dict[str, Any]]


def graph(**entries: tuple[str, dict[str, Any]]) -> Graph:
    """Node `a=("Class", {"input": ("b", 0)})`: a tuple is a link."""
    return {
        name: {
            "class_type": kind,
            "inputs": {k: [*v] if isinstance(v, tuple) else v for k, v in given.items()},
        }
        for name, (kind, given) in entries.items()
    }


@dataclass
class Followed:
    """What the client was told of one job. ran: nodes that were executed, in order; error: of the job."""

    job: str
    ran: list[str] = field(default_factory=lambda: list[str]())
    cached: list[str] = field(default_factory=lambda: list[str]())
    outputs: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    error: dict[str, Any] | None = None
    progress: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())
    previews: int = 0


class Refused(Exception):
    """The prompt was answered with an error; `answer` is its JSON."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"{status}: {answer}")
        self.status, self.answer = status, answer


class Client:
    """One client id, with its WebSocket; a context manager."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._open = ExitStack()
        self.heard: list[dict[str, Any]] = []

    def __enter__(self) -> Client:
        self.http = self._open.enter_context(httpx.Client(base_url=self.url, timeout=60))
        address = f"ws{self.url.removeprefix('http')}/ws?clientId={self.name}"
        self.socket: ClientConnection = self._open.enter_context(connect(address))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def submit(self, prompt: Graph, **more: Any) -> str:
        answer = self.http.post("/prompt", json={"prompt": prompt, "client_id": self.name, **more})
        if answer.status_code != 200:
            raise Refused(answer.status_code, answer.json())
        return answer.json()["prompt_id"]

    def run(self, prompt: Graph, **more: Any) -> Followed:
        found = Followed(self.submit(prompt, **more))
        while not self._ended(found):
            pass
        entry = self.http.get(f"/history/{found.job}").json()[found.job]
        found.outputs = entry["outputs"]
        return found

    def _ended(self, found: Followed) -> bool:
        text = self.socket.recv(timeout=60)
        if isinstance(text, bytes):
            found.previews += 1
            return False
        message = json.loads(text)
        data = message["data"]
        if message["type"] == "progress_state":
            self.heard.append(data["nodes"])
        if data.get("prompt_id") != found.job:
            return False
        match message["type"]:
            case "executing" if data["node"] is None:
                return True
            case "executing":
                found.ran.append(data["node"])
            case "execution_cached":
                found.cached += data["nodes"]
            case "execution_error":
                found.error = data
            case "progress_state":
                found.progress.append(data["nodes"])
            case _:
                pass
        return False

    def pictures(self, found: Followed, node: str) -> list[tuple[int, int]]:
        """The darkest and brightest value of each picture that a node saved."""
        values: list[tuple[int, int]] = []
        for named in found.outputs.get(node, {}).get("images", []):
            content = self.http.get("/view", params=named).content
            low, high = Image.open(io.BytesIO(content)).convert("L").getextrema()
            values.append((int(low), int(high)))  # pyright: ignore[reportArgumentType]
        return values


@contextmanager
def served(folder: Path, *options: str) -> Generator[str]:
    """The address of `loraloom serve` with the testing pack."""
    (folder / "models").mkdir()
    process, url = serve(folder, "--custom-nodes", str(CUSTOM_NODES), "--no-frontend", *options)
    try:
        yield url
    finally:
        process.kill()
        process.wait()
