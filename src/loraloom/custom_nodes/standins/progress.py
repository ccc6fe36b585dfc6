"""Stands in for `comfy.utils`: progress, and what packs take from it for pictures and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loraloom.custom_nodes.current import current_run
from loraloom.errors import ModelFileError
from loraloom.weights.header import pickle_advice

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PROGRESS_BAR_ENABLED", "ProgressBar", "common_upscale", "load_torch_file"]

PROGRESS_BAR_ENABLED = True


class ProgressBar:
    """Says how far the running node is; outside of a node, nothing."""

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total, self.current, self.node_id = total, 0.0, node_id

    def update_absolute(self, value: float, total: float | None = None, preview: object = None) -> None:
        """preview: as ComfyUI takes it, (format, Pillow picture, longest side)."""
        if total is not None:
            self.total = total
        self.current = min(value, self.total)
        run = current_run()
        if run is not None:
            picture = cast("tuple[Any, ...]", preview)[1] if isinstance(preview, tuple) else None
            run.progress(self.current, self.total, picture)

    def update(self, value: float) -> None:
        self.update_absolute(self.current + value)


def common_upscale(samples: Tensor, width: int, height: int, upscale_method: str, crop: str) -> Tensor:
    """(B, C, H, W) → (B, C, height, width)."""
    from loraloom.resampling import resize

    return resize(samples, width, height, upscale_method, crop)


def load_torch_file(
    ckpt: str, safe_load: bool = False, device: object = None, return_metadata: bool = False
) -> Any:
    """The tensors of a safetensors file. Raises ModelFileError for other kinds: pickles are not opened."""
    from safetensors import safe_open

    if Path(ckpt).suffix.lower() not in (".safetensors", ".sft"):
        raise ModelFileError(
            f"{ckpt} is not a safetensors file, and pickled files are not opened: {pickle_advice(Path(ckpt))}"
        )
    with safe_open(ckpt, "pt", device=str(device or "cpu")) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return (tensors, file.metadata()) if return_metadata else tensors
