"""Trainings, from a folder of pictures to the library."""

from __future__ import annotations

from typing import Any

import pytest
from tests.server.page_files import Start, loras, picture, until
from tests.server.running import RunningServer

from loraloom.demo.files import CHECKPOINT


def training(server: RunningServer, **more: Any) -> dict[str, Any]:
    """A training on the demo's model, from two pictures put into a folder over HTTP."""
    place = server.folder / "models" / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "demo.safetensors").exists():
        (place / "demo.safetensors").symlink_to(CHECKPOINT)
    for name, color in (("1.png", "red"), ("2.png", "blue")):
        answer = server.http.put(f"/v1/trainings/folders/set?name={name}", content=picture(color))
        assert answer.status_code == 200, answer.text
    server.http.put("/v1/trainings/folders/set?name=1.txt", content=b"a red thing")
    wanted = {"name": "thing", "base": "demo.safetensors", "folder": "set", "trigger": "thg", "steps": 3,
              "resolution": 64, "rank": 2, "sample_every": 2,
              "prompts": ["thg, a \"quoted\" \\ cat"]}  # fmt: skip
    return {**wanted, **more}


def ended(server: RunningServer, name: str) -> dict[str, Any]:
    def found() -> Any:
        run = server.http.get(f"/v1/trainings/{name}").json()
        return run["status"] != "running" and run

    return until(found, 240)


def test_a_training_from_pictures_to_the_library(start_server: Start) -> None:
    server = start_server()
    wanted = training(server)
    assert server.http.get("/v1/trainings/folders").json() == [{"name": "set", "pictures": 2, "captions": 1}]
    begun = server.http.post("/v1/trainings", json=wanted)
    assert (begun.status_code, begun.json()["status"]) == (201, "running"), begun.text
    assert server.http.post("/v1/trainings", json={**wanted, "name": "second"}).status_code == 409
    run = ended(server, "thing")
    assert (run["status"], run["step"], run["landed"]) == ("finished", 3, "thing.safetensors"), run["what"]
    assert [step for step, _ in run["losses"]] == [1, 2, 3]
    assert [s["step"] for s in run["samples"]] == [2, 3]
    shown = server.http.get(f"/v1/trainings/thing/samples/{run['samples'][0]['file']}")
    assert shown.headers["content-type"] == "image/webp"
    entry = until(lambda: loras(server).get("thing.safetensors"))  # once its folder was looked through again
    assert (entry["family"], entry["triggers"], entry["preview"] > 0) == ("sd15", ["thg"], True)
    assert server.http.post("/v1/trainings", json=wanted).status_code == 400
    assert server.http.delete("/v1/trainings/thing").status_code == 204
    assert server.http.get("/v1/trainings").json() == []
    assert "thing.safetensors" in loras(server)


def test_a_training_is_stopped_and_goes_on(start_server: Start) -> None:
    server = start_server()
    server.http.post("/v1/trainings", json=training(server, steps=400, prompts=[]))
    until(lambda: server.http.get("/v1/trainings/thing").json()["step"] >= 2, 120)
    assert server.http.get("/v1/trainings/thing").json()["stopping"] is False
    assert server.http.post("/v1/trainings/thing/stop").status_code == 202
    now = server.http.get("/v1/trainings/thing").json()
    assert now["stopping"] is (now["status"] == "running")
    run = ended(server, "thing")
    assert run["stopping"] is False
    assert run["status"] == "stopped"
    assert 2 <= run["step"] < 400
    assert server.http.post("/v1/trainings/thing/stop").status_code == 409
    assert server.http.post("/v1/trainings/thing/resume").json()["status"] == "running"
    until(lambda: server.http.get("/v1/trainings/thing").json()["step"] > run["step"], 120)
    losses = server.http.get("/v1/trainings/thing").json()["losses"]
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
    server.http.post("/v1/trainings/thing/stop")
    assert ended(server, "thing")["status"] == "stopped"


def test_a_training_that_fails_says_why(start_server: Start) -> None:
    server = start_server()
    wanted = training(server)
    (server.folder / "models" / "checkpoints" / "bad.safetensors").write_bytes(b"PK\x03\x04" + bytes(64))
    server.http.post("/v1/trainings", json={**wanted, "base": "bad.safetensors"})
    run = ended(server, "thing")
    assert run["status"] == "failed"
    assert "zip archive" in run["what"]
    assert run["advice"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"}, {"name": ""}, {"name": "a/b"}, {"name": "x" * 80}, {"base": "missing.safetensors"},
        {"base": "../x.safetensors"}, {"folder": "../output"}, {"folder": "none"}, {"folder": ""},
        {"steps": 0}, {"rank": "many"}, {"rate": -1}, {"kind": "magic"}, {"output": "/etc"},
    ],
)  # fmt: skip
def test_trainings_that_cannot_be_are_refused(server: RunningServer, wrong: dict[str, Any]) -> None:
    answer = server.http.post("/v1/trainings", json=training(server, **wrong))
    assert answer.status_code in (400, 403, 422), answer.text
    assert server.http.get("/v1/trainings").json() == []


@pytest.mark.parametrize(
    ("folder", "name", "content"),
    [
        ("..", "x.png", picture()), ("set", "../x.png", picture()), ("set", "x.html", b"<b>"),
        ("set", "x.png", b"no picture"), ("set", "x.txt", b"\xff\xfe\xff"),
        ("set", "sub/../../x.png", picture()),
    ],
)  # fmt: skip
def test_only_pictures_and_captions_come_in(
    server: RunningServer, folder: str, name: str, content: bytes
) -> None:
    answer = server.http.put(f"/v1/trainings/folders/{folder}", params={"name": name}, content=content)
    assert answer.status_code in (400, 403, 404, 405)


def test_folders_of_pictures_may_hold_folders(server: RunningServer) -> None:
    for name in ("2_red thing/1.png", "2_red thing/1.txt"):
        content = b"red" if name.endswith(".txt") else picture()
        answer = server.http.put("/v1/trainings/folders/nested", params={"name": name}, content=content)
        assert answer.json()["name"] == "nested", answer.text
    assert (answer.json()["pictures"], answer.json()["captions"]) == (1, 1)
    assert (server.folder / "input/nested/2_red thing/1.txt").read_text() == "red"
