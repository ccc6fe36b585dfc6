"""What leaves the worker for an engine event."""

from __future__ import annotations

from PIL import Image

from loraloom.engine.events import NodeProgress
from loraloom.jobs.messages import Encoder


class Shown:
    """A preview that keeps how it was asked for."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def picture(self, method: str = "auto") -> Image.Image:
        self.methods.append(method)
        return Image.new("RGB", (4, 4))


def test_a_preview_is_made_in_the_way_that_was_asked_for() -> None:
    shown = Shown()
    event = NodeProgress("3", "3", 1, 4, shown)
    assert Encoder("latent2rgb").frame(event)[1].startswith(b"\xff\xd8")
    assert Encoder("").frame(event)[1] == b""
    assert shown.methods == ["latent2rgb"]
    plain = NodeProgress("3", "3", 1, 4, Image.new("RGB", (4, 4)))
    assert Encoder("taesd").frame(plain)[1].startswith(b"\xff\xd8")
