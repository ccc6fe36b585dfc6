"""What fuzzing kept is read or refused, in time: ways through the readers, and what once failed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraloom.errors import LoraloomError
from tests.fuzz.__main__ import CORPUS, FAULTS, fewest
from tests.fuzz.targets import SLOW_SECONDS, TARGETS, Target
from tests.fuzz.trees import changed


def read(target: Target, content: bytes) -> None:
    begun = time.process_time()
    try:
        target.run(content)
    except LoraloomError as error:
        assert str(error)
    assert time.process_time() - begun < SLOW_SECONDS


@pytest.mark.parametrize("path", sorted(FAULTS.glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_once_failed(path: Path) -> None:
    read(TARGETS[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_a_few_changes_of_it_do_no_harm(name: str) -> None:
    target, rng = TARGETS[name], random.Random(1)
    seeds = [*target.seeds()]
    assert seeds
    corpus = [*seeds, *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
    for content in corpus:
        read(target, content)
        read(target, content[: len(content) // 2])
    if target.tree is None:
        return
    for _ in range(40):
        try:
            content = changed(rng.choice(corpus), rng.choice(corpus), target.tree, rng)
        except (ValueError, RecursionError):
            continue
        read(target, content)


def test_the_fewest_inputs_that_reach_every_line_are_kept() -> None:
    settings = TARGETS["settings"]
    good = [*settings.seeds()][0]
    broken = b"a = ["
    assert {*fewest(settings, [broken, good, good + b"#", broken + b"1", b"b = ["])} == {good, b"b = ["}


BROKEN = """
import sys
import tests.fuzz.targets as targets

def run(content):
    if b"x" in content:
        {}["none of the errors that a reader may raise"]
    if b"y" in content:
        while True:
            pass

targets.TARGETS["broken"] = targets.Target(run, lambda: ())
from tests.fuzz import guided
guided._HANG_SECONDS = 0.2
sys.argv = ["", "broken", sys.argv[1], "-runs=3000", "-seed=1", sys.argv[2]]
guided.main()
"""


def test_faults_and_hangs_are_kept_once_and_the_fuzzing_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for text in ("x1", "y", "ax", "a"):
        (seeds / text).write_text(text)
    command = [sys.executable, "-c", BROKEN, str(tmp_path / "faults"), str(seeds)]
    ended = subprocess.run(command, cwd=CORPUS.parents[2], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    kept = {path.read_bytes()[-1:] for path in (tmp_path / "faults").iterdir()}
    said = [line for line in ended.stdout.splitlines() if line.startswith("broken: ")]
    assert len(said) == 2
    assert len([*(tmp_path / "faults").iterdir()]) == 2, kept
    assert "Done 3000 runs" in ended.stderr
