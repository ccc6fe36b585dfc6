"""What the page asks for: drawings, forms, cards, pictures, LoRAs."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.lora.small_files import write_small_lora
from tests.server.running import RunningServer

from loraloom.demo.files import CHECKPOINT, WORKFLOW
from loraloom.server.page import package_folder
from loraloom.server.page_routes.words import trouble_of

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


# ---- The page itself ----


def test_the_page_comes_under_a_strict_policy(server: RunningServer) -> None:
    for path in ("/", "/loraloom"):
        answer = server.http.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "<script>" not in answer.text
        assert " style=" not in answer.text
    for name, kind in (("app.js", "text/javascript"), ("theme.css", "text/css"),
                       ("icon.svg", "image/svg+xml"),
                       ("vendor/preact.mjs", "text/javascript"),
                       ("vendor/inter-latin-wght-normal.woff2", "font/woff2")):  # fmt: skip
        assert server.http.get(f"/loraloom/{name}").headers["content-type"].startswith(kind)
    for name in ("../page.py", "%2e%2e/page.py", "..%2fpage.py", "nothing.js", ""):
        assert server.http.get(f"/loraloom/{name}").status_code in (400, 403, 404)


def test_every_module_that_a_module_names_is_there(server: RunningServer) -> None:
    waiting, seen = ["app.js"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        answer = server.http.get(f"/loraloom/{name}")
        assert answer.status_code == 200, name
        folder = "vendor/" if name.startswith("vendor/") else ""
        named = [
            line.split('from "./')[1].split('"')[0] for line in answer.text.splitlines() if 'from "./' in line
        ]
        waiting += [folder + found for found in named]
    assert len(seen) > 15


# ---- Drawing ----


def test_choices_name_what_there_is(server: RunningServer) -> None:
    write_small_lora(models(server) / "loras" / "a.safetensors")
    found = until(lambda: (c := server.http.get("/v1/draw/choices").json())["loras"] and c)
    assert found["bases"][0]["name"] == "base.safetensors"
    assert found["loras"] == ["a.safetensors"]
    assert "euler" in found["samplers"]
    assert "karras" in found["schedulers"]


def test_a_drawing_becomes_a_card_with_its_settings(start_server: Start) -> None:
    server = start_server("--paused")
    write_small_lora(models(server) / "loras" / "a.safetensors")
    loras = [{"name": "a.safetensors", "model": 0.5, "on": False}]
    asked = {"base": "base.safetensors", "prompt": "a rose", "seed": (1 << 64) - 1, "loras": loras}
    answer = server.http.post("/v1/draw", json=asked)
    assert answer.status_code == 201, answer.text
    card = answer.json()
    assert (card["title"], card["status"]) == ("a rose", "pending")
    assert card["settings"]["seed"] == (1 << 64) - 1
    assert card["settings"]["loras"] == [{"name": "a.safetensors", "model": 0.5, "clip": None, "on": False}]
    listed = server.http.get("/v1/cards").json()
    assert [c["id"] for c in listed["waiting"]] == [card["id"]]
    assert listed["paused"]
    assert server.http.post("/v1/cards/cancel").status_code == 204
    ended = server.http.get("/v1/cards").json()
    assert (ended["waiting_total"], ended["finished"][0]["status"]) == (0, "cancelled")
    assert server.http.post("/v1/cards/clear").status_code == 204
    assert server.http.get("/v1/cards").json()["finished_total"] == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"base": "base.safetensors", "nonsense": 1}, "no setting"),
        ({"base": "base.safetensors", "steps": "many"}, "steps"),
        ({"base": ""}, "no base model"),
        ({"base": "missing.safetensors"}, "missing.safetensors"),
        ({"base": "base.safetensors", "sampler": "magic"}, "magic"),
        ({"base": "base.safetensors", "width": -5}, "width"),
        ({"base": "../base.safetensors"}, "base.safetensors"),
        ({"base": "base.safetensors", "base_kind": "anything"}, "checkpoints"),
        ({"base": "base.safetensors", "loras": [{"name": "no.safetensors"}]}, "no.safetensors"),
    ],
)
def test_a_drawing_that_cannot_be_is_explained(
    server: RunningServer, asked: dict[str, Any], said: str
) -> None:
    models(server)
    answer = server.http.post("/v1/draw", json=asked)
    assert answer.status_code == 400
    assert said in answer.text


# ---- Forms ----


def test_a_picture_with_a_workflow_becomes_a_form(server: RunningServer) -> None:
    models(server)
    content = picture(workflow=WORKFLOW.read_text())
    answer = server.http.post("/v1/workflows?name=rose.png", content=content)
    assert answer.status_code == 200, answer.text
    (form,) = answer.json()["workflows"]
    assert form["settings"]["base"] == "loraloom-demo.safetensors"
    assert any("loraloom-demo.safetensors" in p["message"] for p in form["problems"])
    assert {s["class_type"] for s in form["sections"]} >= {"KSampler", "LoraLoader"}
    assert form["prompt"]["3"]["class_type"] == "CLIPTextEncode"


def test_a_page_with_two_workflows_becomes_two_forms(server: RunningServer) -> None:
    content = Path("examples/lora-tutorial.md").read_bytes()
    found = server.http.post("/v1/workflows?name=page.md", content=content).json()["workflows"]
    assert len(found) == 2
    assert all(form["sections"] for form in found)


@pytest.mark.parametrize("content", [b"", b"no workflow here", b"\x00\x01binary", picture()])
def test_a_file_without_a_workflow_is_refused_in_words(server: RunningServer, content: bytes) -> None:
    answer = server.http.post("/v1/workflows?name=x", content=content)
    assert answer.status_code == 400
    assert len(answer.json()["detail"]) > 10


# ---- Pictures ----


def write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


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


# ---- The library ----


def loras(server: RunningServer) -> dict[str, Any]:
    def found() -> Any:
        listed = server.http.get("/v1/loras?scan=true").json()
        return listed["read"] == listed["total"] and listed

    return {entry["name"]: entry for entry in until(found)["loras"]}


def test_the_library_from_listing_to_renaming(start_server: Start) -> None:
    server = start_server()
    folder = models(server) / "loras"
    write_small_lora(folder / "ink.safetensors", metadata={"modelspec.trigger_phrase": "<i>ink</i>"})
    write_small_lora(folder / "copy.safetensors", metadata={"modelspec.title": "copy"})
    assert loras(server)["ink.safetensors"]["triggers"] == ["<i>ink</i>"]
    page = server.http.get("/v1/loras/inspect?name=ink.safetensors").json()
    assert (page["title"], page["ranks"]) == ("Stable Diffusion 1.5", {"4": 1})
    assert str(server.folder) not in json.dumps(page)
    hashes = server.http.get("/v1/loras/hashes?name=ink.safetensors").json()
    assert (len(hashes["hashes"]["sha256"]), hashes["duplicates"]) == (64, ["copy.safetensors"])
    set_picture = server.http.put("/v1/loras/preview?name=ink.safetensors", content=picture(size=(400, 300)))
    assert set_picture.status_code == 200
    shown = server.http.get("/v1/loras/preview?name=ink.safetensors&width=100")
    assert Image.open(io.BytesIO(shown.content)).size == (100, 75)
    to: dict[str, Any] = {
        "new_name": "styles/wash.safetensors",
        "notes": "my note",
        "activation_text": "wash",
    }
    to["preferred_weight"] = 0.7
    renamed = server.http.patch("/v1/loras?name=ink.safetensors", json=to)
    assert renamed.json() == {"name": "styles/wash.safetensors"}, renamed.text
    entry = loras(server)["styles/wash.safetensors"]
    assert (entry["notes"], entry["triggers"], entry["strength"]) == ("my note", ["wash"], 0.7)
    assert entry["preview"] > 0


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("missing.safetensors", {"notes": "x"}),
        ("../outside.safetensors", {"notes": "x"}),
        ("ink.safetensors", {"new_name": "../up.safetensors"}),
        ("ink.safetensors", {"new_name": "/abs.safetensors"}),
        ("ink.safetensors", {"new_name": "ink.png"}),
        ("ink.safetensors", {"new_name": ""}),
        ("ink.safetensors", {"new_name": "copy.safetensors"}),
        ("ink.safetensors", {"preferred_weight": 1e9}),
        ("ink.safetensors", {"path": "x"}),
    ],
)
def test_names_that_lead_elsewhere_are_refused(server: RunningServer, name: str, to: dict[str, Any]) -> None:
    folder = models(server) / "loras"
    write_small_lora(folder / "ink.safetensors")
    write_small_lora(folder / "copy.safetensors")
    before = sorted(p.name for p in server.folder.rglob("*.safetensors"))
    answer = server.http.patch("/v1/loras", params={"name": name}, json=to)
    assert answer.status_code in (400, 403, 404, 422)
    assert sorted(p.name for p in server.folder.rglob("*.safetensors")) == before


def test_a_preview_is_a_picture(server: RunningServer) -> None:
    write_small_lora(models(server) / "loras" / "ink.safetensors")
    loras(server)
    answer = server.http.put("/v1/loras/preview?name=ink.safetensors", content=b"<svg onload=alert(1)>")
    assert answer.status_code == 400
    assert server.http.get("/v1/loras/preview?name=ink.safetensors").status_code == 404


def test_a_damaged_file_says_what_is_wrong(server: RunningServer) -> None:
    write(models(server) / "loras", "pickle.safetensors", b"PK\x03\x04" + bytes(100))
    entry = until(lambda: loras(server).get("pickle.safetensors"))
    assert "zip archive" in entry["problem"]
    answer = server.http.get("/v1/loras/inspect?name=pickle.safetensors")
    assert (answer.status_code, "zip archive" in answer.text) == (400, True)


# ---- Words ----


@pytest.mark.parametrize(
    ("kind", "message", "advice"),
    [
        ("loraloom.errors.OutOfMemory", "CUDA error: out of memory", "smaller size"),
        ("quarantined", "the worker ended 2 times", "retry"),
        ("loraloom.errors.ModelFileError", "a.safetensors: cut short: 5 bytes", "Download"),
        ("loraloom.errors.InputError", "x.safetensors: nothing of this LoRA fits", "Switch this LoRA off"),
        ("ValueError", "something else", "details"),
    ],
)
def test_trouble_says_what_to_do(kind: str, message: str, advice: str) -> None:
    found = trouble_of({"type": kind, "message": message, "title": "KSampler", "class_type": "KSampler"})
    assert found is not None
    assert advice in found.advice
    assert found.where == "KSampler"
    assert trouble_of(None) is None


def test_trouble_names_its_node_once() -> None:
    message = "node 4 “Start picture” (LoadImage): 'x.png' is not in the input folder"
    found = trouble_of({"type": "x", "message": message, "title": "Start", "class_type": "LoadImage"})
    assert found is not None
    assert (found.what, found.where) == ("'x.png' is not in the input folder.", "Start (LoadImage)")


# ---- Training ----


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


# ---- The official editor ----


def test_models_have_pictures_in_the_editor(server: RunningServer) -> None:
    folder = models(server) / "loras"
    write_small_lora(folder / "sub" / "with.dots v1.0.safetensors")
    write(folder, "sub/with.dots v1.0.png", picture(size=(40, 30)))
    write(server.folder, "secret.png", picture())
    for prefix in ("", "/api"):
        answer = server.http.get(f"{prefix}/experiment/models/preview/loras/0/sub/with.dots%20v1.0.webp")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(answer.content)).size == (40, 30)
    for path in ("loras/0/none.webp", "loras/7/sub/with.dots%20v1.0.webp", "loras/0/..%2f..%2fsecret.webp",
                 "loras/0/%2e%2e/%2e%2e/secret.webp", "nokind/0/x.webp", "loras/0/"):  # fmt: skip
        answer = server.http.get(f"/experiment/models/preview/{path}")
        assert answer.status_code in (400, 403, 404), path


def test_the_extension_is_listed_where_the_editor_is(start_server: Start) -> None:
    server = start_server("--frontend")
    script = server.http.get("/extensions/loraloom/loraloom.js")
    assert script.headers["content-type"].startswith("text/javascript")
    listed = server.http.get("/api/extensions").json()
    there = package_folder("comfyui_frontend_package", "static") is not None
    assert ("/extensions/loraloom/loraloom.js" in listed) == there
