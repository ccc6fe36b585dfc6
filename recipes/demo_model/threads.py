"""How many threads to use on a machine that others use too.

Two threads that wait for each other are slower than one as soon as a core is taken: each parallel loop then
lasts as long as the starved thread needs. So the count follows what is free, every few seconds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch


class FreeCores:
    """Sets torch's thread count to the cores that no other process uses; without /proc, keeps it."""

    def __init__(self, most: int, every: float = 4.0) -> None:
        self._most, self._every = most, every
        self._seen = self._read()
        torch.set_num_threads(most)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds since some start: by the clock, busy seconds of all cores, busy seconds of this process."""
        stat = Path("/proc/stat")
        ticks = (
            [int(word) for word in stat.read_text("ascii").splitlines()[0].split()[1:]]
            if stat.exists()
            else []
        )
        busy = (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK") if ticks else 0.0
        return time.monotonic(), busy, time.process_time()

    def follow(self) -> None:
        """Call once per step."""
        now = time.monotonic()
        if now - self._seen[0] < self._every:
            return
        seen = self._read()
        clock, busy, own = (new - old for new, old in zip(seen, self._seen, strict=True))
        self._seen = seen
        others = max(0.0, busy - own) / clock
        torch.set_num_threads(max(1, min(self._most, round((os.cpu_count() or 1) - others))))
