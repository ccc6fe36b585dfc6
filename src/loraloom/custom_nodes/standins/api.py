"""Stands in for `comfy_api.v0_0_2`: how a node says its progress, plainly or from an async function."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from loraloom.custom_nodes.current import current_run

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ComfyAPI", "ComfyAPISync"]


def _first_picture(shown: object) -> object:
    if getattr(shown, "ndim", 0) not in (3, 4):
        return shown
    from loraloom.runtime.previews import as_picture

    pixels = cast("Tensor", shown)
    return as_picture((pixels if pixels.ndim == 3 else pixels[0]).float().cpu())


class _ExecutionSync:
    def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: object = None,
        ignore_size_limit: bool = False,
    ) -> None:
        """Say how far the running node is; outside of a node, nothing. preview_image: a Pillow picture, or
        pictures (B, H, W, 3) in 0…1, of which the first is shown."""
        run = current_run()
        if run is not None:
            run.progress(min(value, max_value), max_value, _first_picture(preview_image))


class _Execution:
    async def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: object = None,
        ignore_size_limit: bool = False,
    ) -> None:
        """See `_ExecutionSync.set_progress`."""
        _ExecutionSync().set_progress(value, max_value, node_id, preview_image, ignore_size_limit)


class ComfyAPISync:
    """For plain functions."""

    def __init__(self) -> None:
        self.execution = _ExecutionSync()


class ComfyAPI:
    """For async functions."""

    def __init__(self) -> None:
        self.execution = _Execution()
