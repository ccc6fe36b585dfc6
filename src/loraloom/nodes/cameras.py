"""The node that says in words from where a camera looks, for edit models trained on such words."""

from __future__ import annotations

import math
from typing import Annotated

from loraloom.engine.node import Number, Optional_, Socket, Text, node
from loraloom.nodes.sockets import Image

SIDES = (
    "front view",
    "front-right quarter view",
    "right side view",
    "back-right quarter view",
    "back view",
    "back-left quarter view",
    "left side view",
    "front-left quarter view",
)
HEIGHTS = (
    (-15, "low-angle shot"),
    (15, "eye-level shot"),
    (45, "elevated shot"),
    (math.inf, "high-angle shot"),
)
"""(below which angle in degrees, words)."""
DISTANCES = ((2, "wide shot"), (6, "medium shot"), (math.inf, "close-up"))
"""(below which zoom, words)."""
RADIUS = 6.0
FIELD_OF_VIEW = 35
CameraInfo = Annotated[dict[str, object], Socket("LOAD3D_CAMERA")]


@node(
    "CameraAngle",
    category="3d",
    display_name="Compose Camera Angle Prompt",
    outputs=("camera_info", "prompt"),
    v3=True,
)
def camera_angle(
    horizontal_angle: Annotated[int, Number(min=0, max=360)] = 0,
    vertical_angle: Annotated[int, Number(min=-30, max=60)] = 0,
    zoom: Annotated[float, Number(min=0.0, max=10.0, step=0.1)] = 5.0,
    image: Annotated[Image | None, Optional_()] = None,
    view: Annotated[str, Text(multiline=False), Optional_()] = "",
) -> tuple[CameraInfo, str]:
    """Place a camera around the subject, and say its view in words.

    They are those that multiple-angle LoRAs of Qwen-Image-Edit were trained on. The angles are degrees:
    horizontal from the front to the subject's right, vertical upwards. `zoom` goes from a wide shot (0) to a
    close-up (10). `image` and `view` serve the widget only."""
    side = SIDES[int(((horizontal_angle % 360) + 22.5) // 45) % len(SIDES)]
    height = next(words for below, words in HEIGHTS if vertical_angle < below)
    distance = next(words for below, words in DISTANCES if zoom < below)
    yaw, pitch = math.radians(horizontal_angle), math.radians(vertical_angle)
    position = {
        "x": RADIUS * math.cos(pitch) * math.sin(yaw),
        "y": RADIUS * math.sin(pitch),
        "z": RADIUS * math.cos(pitch) * math.cos(yaw),
    }
    camera: dict[str, object] = {
        "position": position,
        "target": {"x": 0.0, "y": 0.0, "z": 0.0},
        "zoom": 1 + 0.875 * zoom / 10,
        "cameraType": "perspective",
        "fov": FIELD_OF_VIEW,
    }
    return camera, f"{side} {height} {distance}"
