"""What the official editor is told beyond ComfyUI's interface: pictures of models, an extension."""

from __future__ import annotations

import io

from PIL import Image
from tests.lora.small_files import write_small_lora
from tests.server.page_files import Start, models, picture, write
from tests.server.running import RunningServer

from loraloom.server.page import package_folder


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
