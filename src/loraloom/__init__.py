"""Loraloom: runs ComfyUI text-to-image workflows with LoRA.

`loraloom.run` and `loraloom.Session` load torch when they are first touched, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Computing", "Run", "Session", "__version__", "run"]

if TYPE_CHECKING:
    from loraloom.models.computing import Computing
    from loraloom.result import Run
    from loraloom.session import Session, run


def __getattr__(name: str) -> object:
    if name in ("Session", "run"):
        from loraloom import session

        return getattr(session, name)
    if name == "Computing":
        from loraloom.models.computing import Computing

        return Computing
    if name == "Run":
        from loraloom.result import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
