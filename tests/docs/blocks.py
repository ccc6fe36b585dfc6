"""The fenced blocks of the documentation, and what a comment right above one says of it.

<!-- not run: REASON -->    nowhere, for a reason that a reader would accept
<!-- slow: REASON -->       among the heavy tests only
<!-- ends with 3 -->        its last command has this exit code
<!-- printed -->            of a text: what the block above it prints; … stands for anything,
                               a number for any number
<!-- file: NAME -->         of a text: a reader saves it under this name

A page with `<!-- begins in an empty folder -->` is read at an empty desk (`tests/docs/desk.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUN = ("bash", "python")
SHOWN = ("text", "json", "toml", "yaml")
MARKS = ("not run", "slow", "ends with", "printed", "file")
EMPTY = "<!-- begins in an empty folder -->"
_FENCE = re.compile(r" {0,3}```(\S*)\s*$")
_MARK = re.compile(rf"<!-- ({'|'.join(MARKS)})(?::? (.+?))? -->")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. page: relative to the repository; line: of its first fence; marks: said by name."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and "not run" not in self.marks

    @property
    def exit_code(self) -> int:
        return int(self.marks.get("ends with", 0))


def pages() -> list[Path]:
    """README.md and every page of the site."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    return [*_blocks(page.relative_to(ROOT).as_posix(), page.read_text("utf-8").splitlines())]


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    above: list[str] = []
    inside: list[str] | None = None
    language, begun = "", 0
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if inside is None and fence:
            inside, language, begun = [], fence[1], number
        elif inside is not None and fence and not fence[1]:
            yield Block(page, begun, language, "\n".join(inside), _marks(f"{page}:{begun}", above))
            inside, above = None, []
        elif inside is not None:
            inside.append(line)
        else:
            above = [*above, line] if line.lstrip().startswith("<!--") else []
    assert inside is None, f"{page}:{begun}: this block has no end"


def _marks(where: str, comments: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for comment in comments:
        said = _MARK.fullmatch(comment.strip())
        assert said, f"{where}: {comment!r} is none of the marks of tests/docs/blocks.py"
        found[said[1]] = said[2] or ""
    for name in ("not run", "slow"):
        assert name not in found or len(found[name].split()) > 2, f"{where}: {name!r} needs a reason"
    return found
