"""Stands in for `comfy.comfy_types` and its `node_typing`: names of socket types, and annotations."""

from __future__ import annotations

from abc import ABC
from enum import StrEnum
from typing import Any, TypedDict

__all__ = ["IO", "CheckLazyMixin", "ComfyNodeABC", "FileLocator", "InputTypeDict", "InputTypeOptions"]


class IO(StrEnum):
    """Socket types. ANY is unequal to none, so that any link fits."""

    ANY = "*"
    STRING = "STRING"
    INT = "INT"
    FLOAT = "FLOAT"
    NUMBER = "FLOAT,INT"
    PRIMITIVE = "STRING,FLOAT,INT,BOOLEAN"
    BOOLEAN = "BOOLEAN"
    COMBO = "COMBO"
    IMAGE = "IMAGE"
    MASK = "MASK"
    LATENT = "LATENT"
    CONDITIONING = "CONDITIONING"
    MODEL = "MODEL"
    CLIP = "CLIP"
    VAE = "VAE"
    CONTROL_NET = "CONTROL_NET"
    CLIP_VISION = "CLIP_VISION"
    CLIP_VISION_OUTPUT = "CLIP_VISION_OUTPUT"
    STYLE_MODEL = "STYLE_MODEL"
    UPSCALE_MODEL = "UPSCALE_MODEL"
    LORA_MODEL = "LORA_MODEL"
    GLIGEN = "GLIGEN"
    SAMPLER = "SAMPLER"
    SIGMAS = "SIGMAS"
    GUIDER = "GUIDER"
    NOISE = "NOISE"
    AUDIO = "AUDIO"
    VIDEO = "VIDEO"
    WEBCAM = "WEBCAM"
    LOSS_MAP = "LOSS_MAP"
    POINT = "POINT"
    FACE_ANALYSIS = "FACE_ANALYSIS"
    BBOX = "BBOX"
    SEGS = "SEGS"

    def __ne__(self, other: object) -> bool:
        if self.value == "*":
            return False
        return not str.__eq__(self, other) if isinstance(other, str) else True


class InputTypeOptions(TypedDict, total=False):
    """The options of an input; any others may be there too."""

    default: Any
    forceInput: bool
    lazy: bool
    rawLink: bool
    tooltip: str
    min: float
    max: float
    step: float
    round: float
    multiline: bool


class InputTypeDict(TypedDict, total=False):
    """What INPUT_TYPES returns."""

    required: dict[str, Any]
    optional: dict[str, Any]
    hidden: dict[str, Any]


class FileLocator(TypedDict):
    """A file that a node wrote."""

    filename: str
    subfolder: str
    type: str


class ComfyNodeABC(ABC):  # noqa: B024 - an annotation for packs, which implement what they like
    """What node classes may derive from; adds nothing."""


class CheckLazyMixin:
    """Asks for every lazy input that has not been computed."""

    def check_lazy_status(self, **kwargs: object) -> list[str]:
        return [name for name, value in kwargs.items() if value is None]
