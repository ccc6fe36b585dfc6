"""In a session, a change costs what it changes: what stays is neither read nor encoded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraloom.models.residency.resident import Resident
from loraloom.result import Run
from loraloom.runtime import prompts
from loraloom.session import Session
from tests.demo_models import write_demo_models

PAGE = Path(__file__).parent.parent / "examples/lora-tutorial.md"
SMALL = {"EmptyLatentImage.width": 64, "EmptyLatentImage.height": 64, "KSampler.steps": 1, "KSampler.seed": 1}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("models")
    write_demo_models(root)
    with Session(root, output_dir=tmp_path_factory.mktemp("output"), dtype="fp32") as made:
        run(made)
        yield made


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many prompts were encoded, modules loaded and weights rebuilt."""
    counted = Counter[str]()
    encode, load, change = prompts.encode_prompt, Resident.__init__, Resident._change  # pyright: ignore[reportPrivateUsage]

    def encoding(*args: Any, **given: Any) -> Any:
        counted["encoded"] += 1
        return encode(*args, **given)

    def loading(*args: Any, **given: Any) -> None:
        counted["loaded"] += 1
        load(*args, **given)

    def changing(*args: Any, **given: Any) -> None:
        counted["rebuilt"] += 1
        change(*args, **given)

    monkeypatch.setattr(prompts, "encode_prompt", encoding)
    monkeypatch.setattr(Resident, "__init__", loading)
    monkeypatch.setattr(Resident, "_change", changing)
    return counted


def run(session: Session, **changed: Any) -> Run:
    named = {name.replace("__", "."): value for name, value in changed.items()}
    return session.run(PAGE, workflow=1, set=SMALL | named)


def ran(session: Session, result: Run) -> set[str]:
    """The classes of the nodes that ran."""
    nodes = session.prepare(PAGE, workflow=1).nodes
    return {nodes[node].class_type for node in result.timings if node in nodes}


def test_the_same_again_runs_nothing(session: Session, work: Counter[str]) -> None:
    assert not ran(session, run(session)) and not work


@pytest.mark.parametrize("changed", [{"KSampler__seed": 2}, {"EmptyLatentImage__width": 72}])
def test_another_seed_or_size(session: Session, work: Counter[str], changed: dict[str, Any]) -> None:
    given = ran(session, run(session, **changed))
    assert given - {"EmptyLatentImage"} == {"KSampler", "VAEDecode", "SaveImage"} and not work


def test_another_prompt(session: Session, work: Counter[str]) -> None:
    text = next(
        node.id
        for node in session.prepare(PAGE, workflow=1).nodes.values()
        if node.class_type == "CLIPTextEncode"
    )
    run(session, **{f"{text}__text": "a green frog"})
    assert work == {"encoded": 1}


def test_another_strength_of_the_network_encodes_nothing(session: Session, work: Counter[str]) -> None:
    result = run(session, LoraLoader__strength_model=0.5)
    assert work.keys() == {"rebuilt"}
    (receipt,) = result.receipts
    network = next(part for part in receipt["components"] if part["component"] == "model")
    assert work["rebuilt"] == network["matched"]


def test_another_strength_of_the_text_leaves_the_network(session: Session, work: Counter[str]) -> None:
    run(session)
    work.clear()
    result = run(session, LoraLoader__strength_clip=0.5)
    (receipt,) = result.receipts
    text = next(part for part in receipt["components"] if part["component"] == "clip")
    assert work == {"encoded": 2, "rebuilt": text["matched"]}
