"""The words for a camera's view."""

from __future__ import annotations

import pytest

from loraloom.nodes.cameras import camera_angle


@pytest.mark.parametrize(
    ("horizontal", "vertical", "zoom", "words"),
    [
        (0, 0, 5.0, "front view eye-level shot medium shot"),
        (22, -15, 1.9, "front view eye-level shot wide shot"),
        (23, -16, 2.0, "front-right quarter view low-angle shot medium shot"),
        (90, 15, 6.0, "right side view elevated shot close-up"),
        (135, 44, 10.0, "back-right quarter view elevated shot close-up"),
        (180, 45, 0.0, "back view high-angle shot wide shot"),
        (225, 60, 5.9, "back-left quarter view high-angle shot medium shot"),
        (270, 0, 5.0, "left side view eye-level shot medium shot"),
        (337, 0, 5.0, "front-left quarter view eye-level shot medium shot"),
        (338, 0, 5.0, "front view eye-level shot medium shot"),
        (360, 0, 5.0, "front view eye-level shot medium shot"),
    ],
)
def test_a_view_in_words(horizontal: int, vertical: int, zoom: float, words: str) -> None:
    _, prompt = camera_angle(horizontal, vertical, zoom)
    assert prompt == words


def test_the_camera_stands_where_it_was_said_to() -> None:
    camera, _ = camera_angle(90, 30, 10.0)
    assert camera["position"] == pytest.approx({"x": 6 * 3**0.5 / 2, "y": 3.0, "z": 0.0})
    assert camera["target"] == {"x": 0.0, "y": 0.0, "z": 0.0}
    assert camera["zoom"] == pytest.approx(1.875)
