"""What every test relies on."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, settings

# The tests start hundreds of processes, each of which would compile Loraloom anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says how busy the machine is.
settings.register_profile(
    "loraloom", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # the same examples everywhere: what passes here passes there; `scripts/fuzz` looks for others
settings.load_profile("loraloom")


def pytest_collection_finish() -> None:
    """Python's collector need not go through every imported library again and again."""
    gc.collect()
    gc.freeze()


NarrowFile: TypeAlias = Callable[[Callable[[Path], Path]], Path]
"""A writer of `tests.narrow_models` → the file that it writes."""


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches go to a folder of the test run, never to the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def narrow_file(tmp_path_factory: pytest.TempPathFactory) -> NarrowFile:
    """Narrow model files, each written once in a test run."""
    folder = tmp_path_factory.mktemp("narrow")

    @cache
    def written(write: Callable[[Path], Path]) -> Path:
        return write(folder / f"{write.__name__}.safetensors")

    return written
