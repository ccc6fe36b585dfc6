"""The library: LoRA files listed, looked into, renamed."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image
from tests.lora.small_files import write_small_lora
from tests.server.page_files import Start, loras, models, picture, until, write
from tests.server.running import RunningServer


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
