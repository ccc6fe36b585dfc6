"""Runs the blocks of a page one after the other, as a reader would type them.

Commands of `loraloom` alone run within this process, which saves their start; a block with anything else is
given to bash. `loraloom serve` runs in a process of its own, on a free port in place of 8188, until the
page ends or the next server starts.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from loraloom.cli.main import exit_code_of
from tests.docs.blocks import ROOT, Block

PORT = re.compile(r"(?<=127\.0\.0\.1:)8188|(?<=localhost:)8188")
SECONDS = 240
"""For a block; those marked slow may take five times as long."""
_MORE_THAN_WORDS = re.compile(r"[|&;<>()$`]|\\(?!\n)")


class Reader:
    """folder: where commands are typed; also the home folder. All else is as the test's environment is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""
        self._served: tuple[subprocess.Popen[str], str] | None = None
        self._environment = {**os.environ, "HOME": str(folder), "PATH": self._path(), "COLUMNS": "100"}

    def read(self, block: Block) -> None:
        """Do what the block says. AssertionError where that does not go as the page says."""
        if "file" in block.marks:
            path = self.folder / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n", "utf-8")
        if "printed" in block.marks:
            assert as_printed(block.text, self.printed), (
                f"{block.where}: said to be printed:\n{block.text}\nprinted:\n{self.printed}"
            )
        if not block.is_run:
            return
        text = PORT.sub(self._port(), block.text) if self._served else block.text
        if block.language == "python":
            code, self.printed = 0, self._python(text, block)
        elif (words := list(_commands(text))) and all(line[0] == "loraloom" for line in words):
            code, self.printed = self._loraloom(words)
        else:
            code, self.printed = self._bash(text, SECONDS * (5 if "slow" in block.marks else 1))
        assert code == block.exit_code, (
            f"{block.where}: ends with {code}, not {block.exit_code}:\n{block.text}\n{self.printed[-2000:]}"
        )

    def read_all(self, blocks: Sequence[Block]) -> None:
        """Read a page; its server ends where nothing asks for it any more."""
        for number, block in enumerate(blocks):
            self.read(block)
            if not any(PORT.search(later.text) for later in blocks[number + 1 :]):
                self.close()

    def close(self) -> None:
        """End the server, if one runs."""
        if self._served is not None:
            process, _ = self._served
            process.terminate()
            process.communicate(timeout=30)
            self._served = None

    def _loraloom(self, lines: list[list[str]]) -> tuple[int, str]:
        said = io.StringIO()
        code = 0
        for words in lines:
            if words[1:2] == ["serve"]:
                said.write(self._serve(words[2:]))
                continue
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = exit_code_of([*self._expanded(words[1:])])
            if code:
                break
        return code, said.getvalue()

    def _expanded(self, words: list[str]) -> Iterator[str]:
        for word in words:
            word = re.sub(r"^~(?=/|$)", str(self.folder), word)
            yield from (sorted(glob(word)) or [word]) if "*" in word else [word]

    def _serve(self, words: list[str]) -> str:
        """Start the server that a page speaks of, on this machine alone, and wait until it listens."""
        self.close()
        options = [*self._expanded(words)]
        while "--listen" in options:
            del options[options.index("--listen") : options.index("--listen") + 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "loraloom", "serve", *options, "--port", "0"],
            cwd=self.folder, env=self._environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "listens on" in line:
                self._served = (process, line.rsplit(":", 1)[1].strip())
                return said
        raise AssertionError(f"the server does not listen:\n{said}")

    def _port(self) -> str:
        assert self._served is not None
        return self._served[1]

    def _bash(self, text: str, seconds: int) -> tuple[int, str]:
        assert "loraloom serve" not in text, "a server ends its block: nobody could type what follows"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder, env=self._environment, text=True, timeout=seconds, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def _python(self, text: str, block: Block) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(text, block.where, "exec"), {"__name__": "__main__"})
        return said.getvalue()

    def _path(self) -> str:
        """Where commands are found: `loraloom` and `python` are those that run the tests."""
        programs = self.folder / ".programs"
        programs.mkdir(exist_ok=True)
        source = f"export PYTHONPATH={shlex.quote(str(ROOT / 'src'))}"
        for name, arguments in {"loraloom": "-m loraloom", "python": ""}.items():
            program = programs / name
            program.write_text(
                f'#!/bin/sh\n{source}\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n', "utf-8"
            )
            program.chmod(0o755)
        return f"{programs}{os.pathsep}{os.environ['PATH']}"


def _commands(text: str) -> Iterator[list[str]]:
    """The words of every command, where a block is nothing but words; else nothing."""
    bare = "\n".join(re.sub(r"""'[^']*'|"[^"$`\\]*\"""", "", line) for line in text.splitlines())
    if _MORE_THAN_WORDS.search(re.sub(r"#.*", "", bare)):
        return
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def as_printed(shown: str, printed: str) -> bool:
    """Whether a text is what was printed: … in a line stands for anything in it, … alone for any lines.

    A number stands for any number: times differ, and so do counts and sizes under another demo model."""
    pattern = ""
    for line in shown.strip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            line = re.sub(r"\d+(?:\.\d+)?", "0", line.rstrip())
            pattern += ".*".join(map(re.escape, line.split("…"))).replace("0", r"\d+(?:\.\d+)?") + r"[ ]*\n"
    return re.fullmatch(pattern, printed.strip() + "\n") is not None
