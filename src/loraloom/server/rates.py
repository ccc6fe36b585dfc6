"""How many jobs each worker completes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 300.0


@dataclass(slots=True)
class Rates:
    """The jobs of the latest minutes, by worker."""

    _begun: float = field(default_factory=time.monotonic)
    _ends: dict[str, deque[float]] = field(default_factory=lambda: dict[str, deque[float]]())

    def count(self, worker: str) -> None:
        """A worker has completed a job."""
        self._ends.setdefault(worker, deque()).append(time.monotonic())

    def per_minute(self, worker: str) -> float:
        """Jobs a minute, over the latest minutes."""
        now, ends = time.monotonic(), self._ends.get(worker)
        if not ends:
            return 0.0
        while ends and ends[0] < now - WINDOW_SECONDS:
            ends.popleft()
        return 60.0 * len(ends) / max(1.0, min(WINDOW_SECONDS, now - self._begun))
