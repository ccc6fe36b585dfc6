"""What `loraloom doctor` finds, one thing at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Level: TypeAlias = Literal["ok", "note", "slow", "problem"]
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """level: "problem" for what does not work, "slow" for what works slowly, "note" for what is good to know.

    advice: what to do, where there is something to do."""

    level: Level
    about: str
    text: str
    advice: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def gigabytes(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / GIB:.1f} GB" if size < 10 * GIB else f"{size / GIB:.0f} GB"
