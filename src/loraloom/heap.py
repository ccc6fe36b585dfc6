"""Memory of the C library that one operation frees and the next one takes.

By itself glibc gives every block above 32 MB, and in threads many smaller ones, back to the system at once
and asks for it anew: the system then clears each page when it is first touched, which may take a fifth of a
step of Stable Diffusion on the processor. Here such blocks stay, as the allocators of devices keep theirs,
until `give_back`. Other C libraries are left as they are, and so is one that the user set by the environment.

Source: mallopt(3), malloc_trim(3) of the Linux manual.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache

KEPT_BYTES = 512 << 20
"""Of what is free at the end of the heap."""

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_SET_BY_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX")


@cache
def reuse() -> bool:
    """Keep large blocks for the next operation, in all threads that begin from now on; whether that is so."""
    set_option = _function("mallopt")
    if set_option is None or any(name in os.environ for name in _SET_BY_USERS):
        return False
    # Threads have heaps of 64 MB of their own, which hold no large block: one heap for all.
    wanted = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, KEPT_BYTES))
    taken = [set_option(option, value) for option, value in wanted]
    return all(taken)


def give_back() -> None:
    """Return to the system what is free."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def _function(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where there is another C library."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
