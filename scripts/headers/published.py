"""What is said of one published file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headers.layouts import Tensors

PT = {"format": "pt"}
"""The metadata that many writers leave."""


@dataclass(frozen=True)
class Published:
    """One file.

    size: in bytes, as published; 0: not known, or the file is in parts.
    family: of the diffusion network that it is, or is for; the kind of a text encoder.
    metadata: None: the header has no place for any.
    unexplained: bytes of its header that are not known here (metadata, where nothing else is said).
    native: the fixture that holds the same network under the original names, for one in diffusers' layout.
    mark: what its tensors "NAME.comfy_quant" say.
    old_writer: written before safetensors 0.3, which sorted by name alone and did not pad the header.
    """

    name: str
    file: str
    tensors: Callable[[], Tensors]
    size: int = 0
    family: str = ""
    metadata: Mapping[str, str] | None = None
    unexplained: int = 0
    native: str = ""
    old_writer: bool = False
    mark: str = ""
    note: str = ""


def diffusers(name: str, dtype: str = "BF16", **config: object) -> Tensors:
    """The state of a class of diffusers, built without memory."""
    import diffusers as library
    import torch

    with torch.device("meta"):
        module = getattr(library, name)(**config)
    found: Tensors = {}
    for key, value in module.state_dict().items():
        found[key] = ("I64" if value.dtype == torch.int64 else dtype, tuple(value.shape))
    return found
