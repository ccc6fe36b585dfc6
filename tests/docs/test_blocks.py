"""Every command of the documentation runs, on the model that comes with Loraloom."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from loraloom.cli.main import COMMANDS
from tests.docs import desk
from tests.docs.blocks import EMPTY, ROOT, RUN, SHOWN, Block, blocks_of, pages
from tests.docs.reader import Reader, as_printed

PAGES = {page.relative_to(ROOT).as_posix(): page for page in pages()}
WITH_COMMANDS = [name for name, page in PAGES.items() if any(b.is_run for b in blocks_of(page))]
SLOW = [name for name in WITH_COMMANDS if any("slow" in block.marks for block in blocks_of(PAGES[name]))]

needs_bash = pytest.mark.skipif(sys.platform == "win32", reason="the pages speak to bash")


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return desk.lay_out(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def reader(name: str, laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Somebody who reads the page of this name."""
    folder = tmp_path / "home"
    if EMPTY in PAGES[name].read_text("utf-8"):
        folder.mkdir()
    else:
        desk.copy(laid_out, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("LORALOOM_MODELS", raising=False)
    monkeypatch.setattr(Image.Image, "show", _seen)
    found = Reader(folder)
    yield found
    found.close()


def _seen(picture: Image.Image) -> None:
    """In place of a window."""
    assert picture.getbbox()


@needs_bash
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_of_a_page_run(name: str, reader: Reader) -> None:
    left_out = False
    blocks: list[Block] = []
    for block in blocks_of(PAGES[name]):
        if "printed" not in block.marks:
            left_out = "slow" in block.marks
        if not left_out:
            blocks.append(block)
    reader.read_all(blocks)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@needs_bash
@pytest.mark.parametrize("name", SLOW)
def test_all_commands_of_a_page_run(name: str, reader: Reader) -> None:
    reader.read_all(blocks_of(PAGES[name]))


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_every_block_says_what_it_is(page: Path) -> None:
    """A command that stands in a block without a language, or is only indented, would never be run."""
    for block in blocks_of(page):
        assert block.language in (*RUN, *SHOWN), f"{block.where}: language {block.language!r}"
        if block.language == "text":
            assert not re.match(r"(loraloom|curl|pip|python|scripts/)", block.text), (
                f"{block.where}: say bash"
            )
    inside = {block.line + n for block in blocks_of(page) for n in range(block.text.count("\n") + 2)}
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if number in inside:
            continue
        assert not re.match(r" {4,}(loraloom|python|curl) ", line), (
            f"{page}:{number}: a command without a fence"
        )


def test_commands_within_sentences_exist() -> None:
    """`loraloom COMMAND --option` in running text: the command and its options are real."""
    options = known_options()
    for name, page in PAGES.items():
        for said in re.findall(r"`(loraloom [^`]+)`", page.read_text("utf-8")):
            words = said.split()
            path = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in options), None)
            assert path or words[1] in (*COMMANDS, "COMMAND") or words[1][0] == "-", f"{name}: {said}"
            for option in re.findall(r"(?<= )--[a-z-]+", said):
                assert path is None or option in options[path], f"{name}: {said}"


def test_printed_tokens_are_long_enough() -> None:
    """`loraloom serve` refuses shorter ones."""
    for name, page in PAGES.items():
        for token in re.findall(r"(?:LORALOOM_TOKEN=|\?token=|--token )([\w-]+)", page.read_text("utf-8")):
            assert token == "TOKEN" or len(token) >= 8, f"{name}: {token}"


def known_options() -> dict[str, set[str]]:
    """The options of every command, as the reference states them."""
    found: dict[str, set[str]] = {}
    path = ""
    for line in PAGES["docs/reference/commands.md"].read_text("utf-8").splitlines():
        if line.startswith("## "):
            path = line[3:]
            found[path] = {"--help"}
        elif line.startswith("| `-"):
            found[path] |= set(re.findall(r"--[a-z-]+", line.split("|")[1]))
    return found


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("a\nb", "a\nb\n", True),
        ("a … c", "a long c", True),
        ("a\n…\nd", "a\nb\nc\nd", True),
        ("a\n…\nd", "a\nd", True),
        ("a", "a\nb", False),
        ("1.5 s, 0.14", "12 s, 0.1", True),
        ("1.5 s", "1x5 s", False),
    ],
)
def test_what_is_shown_is_compared_line_by_line(shown: str, printed: str, fits: bool) -> None:
    assert as_printed(shown, printed) is fits


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    wrong = Block("page.md", 1, "bash", "loraloom run no-such-file.json", {})
    with pytest.raises(AssertionError, match="no-such-file"):
        reader.read(wrong)
    with pytest.raises(AssertionError, match="ends with 3"):
        reader.read(Block("page.md", 1, "bash", "(exit 3)", {}))
    reader.read(Block("page.md", 1, "bash", "echo one; (exit 3)", {"ends with": "3"}))
    with pytest.raises(AssertionError, match="printed"):
        reader.read(Block("page.md", 1, "text", "two", {"printed": ""}))
