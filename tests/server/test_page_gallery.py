"""The gallery: pictures listed, shown, deleted and brought back."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from tests.server.page_files import Start, picture, write
from tests.server.running import RunningServer


def test_pictures_are_listed_shown_deleted_and_brought_back(start_server: Start) -> None:
    server = start_server()
    out = server.folder / "output"
    prompt = {"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "hello <b>"}}}
    write(out, "first.png", picture(prompt=json.dumps(prompt)))
    write(out, "deep/second.png", picture("blue"))
    write(out, ".hidden/third.png", picture())
    write(out, "note.txt", b"text")
    listed = server.http.get("/v1/pictures").json()
    assert {(p["subfolder"], p["filename"]) for p in listed["pictures"]} == {
        ("", "first.png"),
        ("deep", "second.png"),
    }
    small = server.http.get("/v1/pictures/thumbnail?name=second.png&subfolder=deep&width=16")
    assert (small.headers["content-type"], Image.open(io.BytesIO(small.content)).width) == ("image/webp", 16)
    facts = server.http.get("/v1/pictures/facts?name=first.png").json()
    assert (facts["title"], facts["width"], facts["has_workflow"]) == ("hello <b>", 64, True)
    form = server.http.get("/v1/pictures/workflows?name=first.png").json()["workflows"][0]
    assert form["sections"][0]["fields"][0]["value"] == "hello <b>"
    moved = server.http.post("/v1/pictures/delete", json={"names": ["deep/second.png"]}).json()["names"]
    assert moved == [".bin/deep/second.png"]
    assert server.http.get("/v1/pictures").json()["total"] == 1
    assert server.http.get("/v1/pictures?bin=true").json()["pictures"][0]["subfolder"] == ".bin/deep"
    write(out, "deep/second.png", picture("green"))
    back = server.http.post("/v1/pictures/restore", json={"names": ["deep/second.png"]}).json()["names"]
    assert back == ["deep/second (1).png"]
    server.http.post("/v1/pictures/delete", json={"names": ["first.png"]})
    assert server.http.post("/v1/pictures/empty-bin").status_code == 204
    assert server.http.get("/v1/pictures?bin=true").json()["total"] == 0


@pytest.mark.parametrize(
    "name", ["../user/queue.db", "/etc/passwd", "..\\x.png", "note.txt", "", "a\x00.png"]
)
def test_pictures_outside_the_folder_are_not_served(server: RunningServer, name: str) -> None:
    write(server.folder / "output", "note.txt", b"text")
    for path in ("facts", "workflows", "thumbnail"):
        answer = server.http.get(f"/v1/pictures/{path}", params={"name": name})
        assert answer.status_code in (400, 403, 404)
    answer = server.http.post("/v1/pictures/delete", json={"names": [name]})
    assert answer.status_code in (400, 403, 404)
