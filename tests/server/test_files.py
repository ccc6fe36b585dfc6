"""Pictures over HTTP: within memory, never from elsewhere, and said when there is no space."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.lora.small_files import write_small_lora
from tests.server.running import RunningServer
from tests.test_confined import exchange

from loraloom.server.file_routes import sweep


def large(side: int = 8000) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def peak(pid: int) -> int:
    """The most bytes of memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_a_picture_of_64_megapixels_costs_what_it_is_and_no_more(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server("--paused")
    output = server.folder / "output"
    output.mkdir(exist_ok=True)
    content = large()
    (output / "large.png").write_bytes(content)
    before = peak(server.process.pid)

    def ask(preview: str) -> int:
        answer = server.http.get("/view", params={"filename": "large.png", "preview": preview})
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert max(picture.size) == 2048
        return answer.status_code

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, ["webp;90"] * 3 + ["jpeg;80"] * 3)) == {200}
    upload = server.http.post("/upload/image", files={"image": ("large.png", content)})
    assert upload.status_code == 200
    assert peak(server.process.pid) - before < 800 * 1024 * 1024


def test_previews_of_odd_pictures(server: RunningServer) -> None:
    output = server.folder / "output"
    output.mkdir(exist_ok=True)
    for name, mode, size in (
        ("tall.png", "L", (1, 60_000)),
        ("alpha.png", "LA", (5, 4)),
        ("palette.png", "P", (9, 9)),
        ("deep.png", "I;16", (7, 7)),
        ("cmyk.jpg", "CMYK", (8, 8)),
    ):
        Image.new(mode, size).save(output / name)
        for query in ({"preview": "webp;50"}, {"preview": "jpeg"}, {"channel": "rgb"}, {"channel": "a"}):
            answer = server.http.get("/view", params={"filename": name, **query})
            assert answer.status_code == 200, (name, query)
            with Image.open(io.BytesIO(answer.content)) as picture:
                picture.load()
    half = Image.new("RGBA", (3, 2), (9, 8, 7, 128))
    half.save(output / "half.png")
    answer = server.http.get("/view", params={"filename": "half.png", "channel": "a"})
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 0, 128)


def test_a_file_is_sent_whole_with_its_size_and_age(server: RunningServer) -> None:
    content = os.urandom(700_000)
    folder = server.folder / "output"
    folder.mkdir(exist_ok=True)
    (folder / "ä b.bin").write_bytes(content)
    answer = server.http.get("/view", params={"filename": "ä b.bin"})
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''%C3%A4%20b.bin"
    assert answer.headers["last-modified"] and answer.headers["etag"]
    head = server.http.head("/view", params={"filename": "ä b.bin"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(content))


def test_view_leaks_nothing_while_links_are_swapped(server: RunningServer) -> None:
    output, outside = server.folder / "output", server.folder / "outside"
    (output / "sub").mkdir(parents=True, exist_ok=True)
    outside.mkdir()
    (output / "sub" / "a.txt").write_text("inside")
    (outside / "a.txt").write_text("the canary")
    (output / "link").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            exchange(output / "sub", output / "link")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        query = {"filename": "a.txt", "subfolder": "sub"}
        texts = {server.http.get("/view", params=query).text for _ in range(600)}
    finally:
        over.set()
        thread.join()
    assert "inside" in texts
    assert not any("canary" in text for text in texts)


def test_temporary_pictures_are_swept_and_nothing_else(tmp_path: Path) -> None:
    temp, other = tmp_path / "temp", tmp_path / "other"
    for folder in (temp / "sub", other):
        folder.mkdir(parents=True)
        (folder / "old.png").write_bytes(b"x")
        os.utime(folder / "old.png", (1, 1))
    (temp / "new.png").write_bytes(b"x")
    (temp / "link").symlink_to(other)
    sweep(temp, 3600)
    assert not (temp / "sub" / "old.png").exists()
    assert (temp / "new.png").exists() and (other / "old.png").exists()
    (tmp_path / "linked").symlink_to(other)
    sweep(tmp_path / "linked", 3600)
    assert (other / "old.png").exists()


def test_values_that_no_json_can_hold_are_nothing_to_the_others(server: RunningServer) -> None:
    graph: dict[str, Any] = {"1": {"class_type": "Number", "inputs": {"value": 4}}}
    graph["9"] = {"class_type": "Save", "inputs": {"value": ["1", 0], "name": "\ud83d"}}
    body = json.dumps(
        {"prompt": graph, "client_id": "\udc00x", "extra_data": {"a": "\ud800", "\ud800": "INFINITE"}}
    ).replace('"INFINITE"', "1e999")
    answer = server.http.post("/prompt", content=body)
    assert answer.status_code == 200, answer.text
    entry = server.history(answer.json()["prompt_id"])
    assert entry["prompt"][3]["a"] == "\ufffd"
    assert entry["prompt"][3]["\ufffd"] is None
    assert server.http.post("/settings", content='{"x": 1e999, "y": "\\ud800"}').status_code == 200
    assert server.http.post("/settings/z", content="-1e999").status_code == 200
    settings = server.http.get("/settings").json()
    assert (settings["x"], settings["y"], settings["z"]) == (None, "\ufffd", None)
    for path in ("/queue", "/history", "/jobs", "/v1/jobs", "/v1/queue"):
        assert server.http.get(path).status_code == 200, path


@pytest.mark.parametrize("value", ["1", "true", "1.5", '"x"', "[]", "null"])
def test_prompts_of_the_wrong_kind_are_refused(server: RunningServer, value: str) -> None:
    answer = server.http.post("/prompt", content=f'{{"prompt": {value}}}')
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] in ("invalid_prompt", "no_prompt")


def test_settings_of_former_times_are_shown_whatever_is_in_them(server: RunningServer) -> None:
    folder = server.folder / "user" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comfy.settings.json").write_text('{"a": NaN, "b": Infinity, "c": "\\ud800", "d": 1}')
    assert server.http.get("/settings").json() == {"a": None, "b": None, "c": "\ufffd", "d": 1}


def test_a_large_body_leaves_little_behind(start_server: Callable[..., RunningServer]) -> None:
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    resource = pytest.importorskip("resource")
    server = start_server("--paused")
    nodes = [{"id": i, "type": "x", "widgets": [1, 2.5, "abc", {"a": i}]} for i in range(200_000)]
    body = json.dumps({"prompt": 5, "extra_data": {"nodes": nodes}})
    memory = Path(f"/proc/{server.process.pid}/statm")

    def held() -> int:
        return int(memory.read_text().split()[1]) * resource.getpagesize()

    assert server.http.post("/prompt", json={"prompt": 5}).status_code == 400
    before = held()
    for _ in range(2):
        assert server.http.post("/prompt", content=body).status_code == 400
    until = time.monotonic() + 20
    while held() - before > 64 * 1024 * 1024:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_users_own_style_sheet_goes_before_the_editors(server: RunningServer) -> None:
    assert server.http.get("/user.css").status_code == 404
    own = server.folder / "user/default/user.css"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("a { color: red }")
    assert server.http.get("/user.css").text == "a { color: red }"


def test_settings_that_are_changed_at_once_are_all_kept(server: RunningServer) -> None:
    def change(number: int) -> int:
        if number % 2:
            return server.http.post("/settings", json={f"s{number}": number}).status_code
        return server.http.post(f"/settings/s{number}", json=number).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(change, range(40))) == {200}
    settings = server.http.get("/settings").json()
    assert {name: settings.get(name) for name in settings if name[1:].isdigit()} == {
        f"s{number}": number for number in range(40)
    }


def test_settings_that_cannot_be_read_are_not_forgotten(server: RunningServer) -> None:
    path = server.folder / "user/default/comfy.settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    assert server.http.get("/settings").status_code == 503
    assert server.http.post("/settings", json={"a": 1}).status_code == 503
    assert path.is_symlink()
    path.unlink()
    assert server.http.post("/settings", json={"a": 1}).status_code == 200
    assert server.http.get("/settings").json() == {"a": 1}


def test_a_model_that_was_put_there_a_moment_ago_is_found(server: RunningServer) -> None:
    graph = {
        "1": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "new.safetensors"}},
        "2": {"class_type": "Save", "inputs": {"value": ["1", 0]}},
    }
    refused = server.http.post("/prompt", json={"prompt": graph})
    assert refused.status_code == 400 and "new.safetensors" in refused.text
    place = server.folder / "models" / "upscale_models" / "new.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    accepted = server.http.post("/prompt", json={"prompt": graph})
    assert accepted.status_code == 200, accepted.text


def same_time(path: Path, content: bytes) -> None:
    """Put a file in another's place, with its time."""
    part = path.with_name("part")
    part.write_bytes(content)
    os.utime(part, ns=(1, 1))
    part.replace(path)


def test_browsers_ask_whether_a_picture_is_still_the_same(server: RunningServer) -> None:
    """Names are used again: of the latest picture, once that is deleted, and of all that are in temp."""
    output = server.folder / "output"
    output.mkdir(exist_ok=True)
    for path, params in (
        ("/view", {"filename": "a.png"}),
        ("/v1/pictures/thumbnail", {"name": "a.png", "width": "16"}),
    ):
        same_time(output / "a.png", png("red"))
        first = server.http.get(path, params=params)
        assert first.status_code == 200 and first.headers["cache-control"] == "private, no-cache"
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = server.http.get(path, params=params, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), path
        same_time(output / "a.png", png("tan"))
        other = server.http.get(path, params=params, headers={"If-None-Match": tag})
        assert other.status_code == 200 and other.content != first.content, path


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(buffer, "PNG", compress_level=0)  # all are of one size
    return buffer.getvalue()


def test_lists_of_files_show_what_was_just_put_there(server: RunningServer) -> None:
    loras = server.folder / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)

    def lists() -> list[str]:
        info = server.http.get("/object_info/LoraLoader").json()["LoraLoader"]
        return [
            server.http.get("/models/loras").text,
            server.http.get("/experiment/models/loras").text,
            json.dumps(info),
            json.dumps(server.http.get("/object_info").json()["LoraLoader"]),
            json.dumps(server.http.get("/v1/draw/choices").json()["loras"]),
        ]

    for number in range(3):
        (loras / f"new{number}.safetensors").write_bytes(b"x")
        assert all(f"new{number}.safetensors" in text for text in lists())
        (loras / f"new{number}.safetensors").unlink()
        assert not any(f"new{number}.safetensors" in text for text in lists())


def test_a_damaged_picture_is_refused_whatever_its_library_raises(server: RunningServer) -> None:
    """That of AVIF raises RuntimeError."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "AVIF")
    damaged = buffer.getvalue().replace(b"iloc", b"xloc")
    (server.folder / "output").mkdir(exist_ok=True)
    (server.folder / "output" / "a.avif").write_bytes(damaged)
    write_small_lora(server.folder / "models" / "loras" / "a.safetensors")
    http, whole = server.http, png("red")
    assert http.post("/upload/image", files={"image": ("whole.png", whole)}).status_code == 200
    mask = {"original_ref": '{"filename": "whole.png", "type": "input"}'}
    answers = [
        http.post("/upload/image", files={"image": ("a.avif", damaged)}),
        http.post("/upload/mask", files={"image": ("a.avif", damaged)}, data=mask),
        http.get("/view", params={"filename": "a.avif", "preview": "webp;80"}),
        http.get("/view", params={"filename": "a.avif", "channel": "a"}),
        http.get("/v1/pictures/thumbnail", params={"name": "a.avif"}),
        http.get("/v1/pictures/facts", params={"name": "a.avif"}),
        http.put("/v1/loras/preview", params={"name": "a.safetensors"}, content=damaged),
        http.put("/v1/trainings/folders/f", params={"name": "a.avif"}, content=damaged),
    ]
    assert [a.status_code for a in answers] == [400, 400, 400, 400, 404, 404, 400, 400]
