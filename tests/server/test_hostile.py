"""No request makes the server fail, hang, grow, or touch what is not its own."""

from __future__ import annotations

import http.client
import io
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from PIL import Image
from tests.lora.small_files import write_small_lora
from tests.server.hostile import Hostile, hostile_requests
from tests.server.running import RunningServer


def _send(connection: http.client.HTTPConnection, request: Hostile, host: str) -> tuple[int, bytes]:
    connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": host, "Content-Length": str(len(request.body)), **request.headers}.items():
        connection.putheader(name, value)
    connection.endheaders(request.body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _memory(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_hostile_requests(server: RunningServer) -> None:
    folder = server.folder
    canary = "this is the canary"
    (folder / "secret").write_text(canary)
    (folder / "secret.png").write_text(canary)
    for kind in ("output", "input", "temp", "user/default"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / "link").symlink_to(folder)
    before = {p for p in folder.parent.rglob("*") if not p.is_relative_to(folder)}
    allowed = {folder / name for name in ("output", "input", "temp", "user")}
    host = server.url.removeprefix("http://")
    requests = [*hostile_requests(_png())]
    assert len(requests) >= 1200
    grown_from = 0
    statuses: Counter[int] = Counter()
    slowest = 0.0
    connection = http.client.HTTPConnection(host, timeout=10)
    failures: list[object] = []
    for count, request in enumerate(requests):
        if count == 300:
            grown_from = _memory(server.process.pid)
        begun = time.monotonic()
        try:
            status, body = _send(connection, request, host)
        except TimeoutError:
            failures.append(("no answer", request.method, request.target[:200], request.body[:200]))
            connection.close()
            connection = http.client.HTTPConnection(host, timeout=10)
            continue
        except (http.client.InvalidURL, UnicodeEncodeError, ValueError):
            # Refused already here.
            connection.close()
            connection = http.client.HTTPConnection(host, timeout=10)
            continue
        except (http.client.HTTPException, ConnectionError) as error:
            failures.append((repr(error), request.method, request.target[:200], request.body[:200]))
            connection.close()
            connection = http.client.HTTPConnection(host, timeout=10)
            continue
        slowest = max(slowest, time.monotonic() - begun)
        statuses[status] += 1
        if status >= 500:
            failures.append((request.method, request.target[:200], request.body[:200], body[:300]))
        assert canary.encode() not in body, request
    connection.close()
    assert not failures, failures
    assert sum(statuses.values()) > 1200
    assert slowest < 5
    assert server.http.get("/prompt").status_code == 200
    assert {p for p in folder.parent.rglob("*") if not p.is_relative_to(folder)} == before
    strays = [p for p in folder.iterdir() if p not in allowed and not p.name.startswith("secret")]
    assert strays == []
    assert (folder / "secret").read_text() == canary
    assert _memory(server.process.pid) - grown_from < 64 * 1024 * 1024


def test_uploaded_pictures_come_back_and_nothing_else_is_stored(server: RunningServer) -> None:
    png = _png()
    first = server.http.post("/upload/image", files={"image": ("rose.png", png)}, data={"subfolder": "a"})
    assert first.json() == {"name": "rose.png", "subfolder": "a", "type": "input"}
    again = server.http.post("/upload/image", files={"image": ("rose.png", png)}, data={"subfolder": "a"})
    assert again.json()["name"] == "rose.png"
    other = io.BytesIO()
    Image.new("RGB", (4, 4)).save(other, "PNG")
    third = server.http.post(
        "/upload/image", files={"image": ("rose.png", other.getvalue())}, data={"subfolder": "a"}
    )
    assert third.json()["name"] == "rose (1).png"
    shown = server.http.get("/view", params={"filename": "rose.png", "subfolder": "a", "type": "input"})
    assert shown.content == png
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["x-content-type-options"] == "nosniff"
    small = server.http.get(
        "/view", params={"filename": "rose.png [input]", "subfolder": "a", "preview": "webp;80"}
    )
    assert small.headers["content-type"] == "image/webp"
    for name, content in (("x.svg", b"<svg/>"), ("x.png", b"<html>"), ("x.html", png)):
        assert server.http.post("/upload/image", files={"image": (name, content)}).status_code == 400
    for name, stored in (("blob", "blob.png"), ("Shot 10.22.33", "Shot 10.22.33.png"), ("a.jfif", "a.jfif")):
        answer = server.http.post("/upload/image", files={"image": (name, png)})
        assert (answer.status_code, answer.json()["name"]) == (200, stored)
    mask = server.http.post(
        "/upload/mask",
        files={"image": ("mask.png", png)},
        data={"original_ref": '{"filename": "rose (1).png", "subfolder": "a", "type": "input"}'},
    )
    with Image.open(server.folder / "input" / mask.json()["name"]) as picture:
        assert picture.mode == "RGBA"
        assert picture.getpixel((0, 0)) == (0, 0, 0, 4)


def test_files_that_are_no_pictures_are_only_to_be_saved(server: RunningServer) -> None:
    folder = server.folder / "output"
    folder.mkdir(exist_ok=True)
    for name in ("x.html", "x.svg", "x.js", "x.xml", "x.txt"):
        (folder / name).write_text("<script>alert(1)</script>")
        answer = server.http.get("/view", params={"filename": name})
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_kind_of_models_is_no_way_out_of_their_folder(server: RunningServer) -> None:
    (server.folder / "models" / "loras").mkdir(parents=True, exist_ok=True)
    write_small_lora(server.folder / "models" / "loras" / "a.safetensors")
    write_small_lora(server.folder / "outside" / "b.safetensors")
    (server.folder / "outside" / "b.png").write_bytes(_png())
    for kind in ("..", ".", "../outside", str(server.folder / "outside"), "..\\outside"):
        base = {"name": "a.safetensors", "base": "b.safetensors", "base_kind": kind}
        told = server.http.get("/v1/loras/inspect", params=base)
        assert (told.status_code, told.json()["fit"]) == (200, None), (kind, told.text)
        escaped = quote(kind, safe="")
        for name in ("b.webp", "outside/b.webp"):
            path = f"/experiment/models/preview/{escaped}/0/{name}"
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
            connection.request("GET", path)
            assert connection.getresponse().status == 404, path
            connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_file_names_that_are_no_text_hide_no_others(server: RunningServer) -> None:
    """As archives of older systems bring them along."""
    odd = b"/\xff\x82.png"
    server.http.post("/userdata/workflows%2Ffine.json", content=b"{}")
    for name in ("output", "input/pictures", "user/default/workflows"):
        folder = server.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fine.png").write_bytes(_png())
        Path(os.fsdecode(bytes(folder) + odd)).write_bytes(_png())
    loras = server.folder / "models" / "loras"
    write_small_lora(loras / "fine.safetensors")
    write_small_lora(Path(os.fsdecode(bytes(loras) + b"/\xff.safetensors")))
    for path in (
        "/v1/pictures", "/v1/loras", "/v1/trainings/folders", "/models/loras", "/object_info/LoadImage",
        "/internal/files/output", "/userdata?dir=workflows&full_info=true", "/v1/draw/choices",
        "/experiment/models/loras",
    ):  # fmt: skip
        answer = server.http.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert ("fine" in answer.text or "pictures" in answer.text) and "\ufffd" not in answer.text, path


def test_files_that_come_and_go_are_there_or_not(server: RunningServer) -> None:
    output, user = server.folder / "output", server.folder / "user" / "default" / "w"
    for folder in (output, user):
        folder.mkdir(parents=True, exist_ok=True)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for path in (output / "a.png", user / "a.json", server.folder / "user" / "default" / "user.css"):
                path.write_bytes(png)
                path.unlink()

    png = _png()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        statuses = {
            server.http.get(path).status_code
            for _ in range(60)
            for path in (
                "/v1/pictures", "/v1/pictures/facts?name=a.png", "/v1/pictures/workflows?name=a.png",
                "/v1/pictures/thumbnail?name=a.png", "/view?filename=a.png", "/internal/files/output",
                "/userdata?dir=w&full_info=true", "/userdata/w%2Fa.json", "/user.css",
            )
        }  # fmt: skip
    finally:
        over.set()
        thread.join()
    assert statuses <= {200, 400, 404}
