"""Blocks of a network compiled for the machine (`torch.compile`).

What was compiled is kept in the user's cache folder, so that another process starts with it.

Numbers are rounded in another order than without: pictures agree as those of two kernels do.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from loraloom.errors import InputError

BESIDE = frozenset({"ResnetBlock2D"})
"""Blocks that repeat in diffusers' UNets beside those that they name themselves."""


FORMS = 64
"""Shapes of weights and pictures for which one kind of block may be compiled anew."""


def check_compiler(device: torch.device) -> None:
    """InputError where nothing can be compiled."""
    if device.type == "cpu":
        builder: Any = importlib.import_module("torch._inductor.cpp_builder")
        try:
            builder.get_cpp_compiler()
        except Exception as error:
            raise InputError(f"--compile needs a C++ compiler, and there is none: {error}") from error
    elif importlib.util.find_spec("triton") is None:
        raise InputError(f"--compile needs the package triton on {device.type}, and it is not installed")


def compile_blocks(module: nn.Module) -> int:
    """Let the blocks of which a network mostly consists be compiled when they first run; how many."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(base) / "loraloom" / "compiled"))
    config: Any = importlib.import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, FORMS)
    blocks = list(_blocks(module))
    for block in blocks:
        block.compile()
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    names = BESIDE | set(cast("list[str]", getattr(module, "_repeated_blocks", None) or ()))
    return (block for block in module.modules() if type(block).__name__ in names)
