"""The shipped model really draws: things look as they are called, and a LoRA does what it was trained for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from loraloom.cli.main import exit_code_of
from loraloom.demo.files import CHECKPOINT, LORAS, MODELS, WORKFLOW
from loraloom.result import Run
from loraloom.session import Session
from loraloom.workflow.graph import Graph

Pixels = NDArray[np.float64]
GOLDEN = Path(__file__).parent / "data"
BLOCK = 16


class Draw(Protocol):
    def __call__(self, prompt: str, strength: float = 0.0, lora: str = "pixel_art") -> Pixels: ...


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(MODELS, output_dir=tmp_path_factory.mktemp("output"), dtype="fp32") as made:
        yield made


def changes(prompt: str, strength: float, lora: str = "pixel_art") -> dict[str, Any]:
    return {
        "LoraLoader.lora_name": LORAS[lora].file.name,
        "LoraLoader.strength_model": strength,
        "LoraLoader.strength_clip": strength,
        "3.text": prompt,
    }


@pytest.fixture(scope="module")
def draw(session: Session) -> Draw:
    """Draws with seed 7; what was drawn already is shown again."""

    @cache
    def drawn(prompt: str, strength: float = 0.0, lora: str = "pixel_art") -> Pixels:
        return pixels(session.run(WORKFLOW, set=changes(prompt, strength, lora), seed=7))

    return drawn


def pixels(run: Run) -> Pixels:
    return np.asarray(run.images[0].convert("RGB"), np.float64)


def block_constancy(picture: Pixels) -> float:
    """Share of the variance that lies between blocks: 1 for perfect blocks."""
    side = len(picture) // BLOCK
    blocks = picture.reshape(side, BLOCK, side, BLOCK, 3).transpose(0, 2, 1, 3, 4).reshape(-1, BLOCK**2, 3)
    return 1.0 - blocks.var(1).mean(0).sum() / picture.reshape(-1, 3).var(0).sum()


@pytest.mark.parametrize(
    ("prompt", "strong", "weak"),
    [
        ("a red apple", "r", "gb"),
        ("a red heart", "r", "gb"),
        ("a blue heart", "b", "rg"),
        ("a frog", "g", "rb"),
        ("a lemon", "rg", "b"),
        ("a carrot", "r", "b"),
    ],
)
def test_things_have_their_colours(draw: Draw, prompt: str, strong: str, weak: str) -> None:
    picture = draw(prompt)
    drawn = picture[picture.min(-1) < 200]
    assert 0.05 < len(drawn) / picture[..., 0].size < 0.95
    colour = dict(zip("rgb", drawn.mean(0), strict=True))
    assert min(colour[c] for c in strong) > max(colour[c] for c in weak) + 25, colour


@pytest.mark.parametrize("name", ["red-rose", "cat", "pizza", "pixel-art-red-rose"])
def test_pictures_stay_what_they_were(draw: Draw, name: str) -> None:
    """The sampler, the text encoder, the LoRA or the autoencoder may not drift: stored pictures hold them."""
    words = name.replace("pixel-art-", "").replace("-", " ")
    picture = draw(f"pixel_art, a {words}", 1.0) if "pixel" in name else draw(f"a {words}")
    with Image.open(GOLDEN / f"{name}.png") as stored:
        difference = np.abs(picture - np.asarray(stored.convert("RGB"), np.float64))
    assert difference.mean() < 0.5
    assert difference.max() < 24


def test_the_lora_makes_large_pixels_when_its_word_is_said(draw: Draw) -> None:
    names = ("a red rose", "a cat", "a pizza")
    base = np.mean([block_constancy(draw(name)) for name in names])
    alone = np.mean([block_constancy(draw(name, 1.0)) for name in names])
    both = np.mean([block_constancy(draw(f"pixel_art, {name}", 1.0)) for name in names])
    assert base + 0.03 < both
    assert alone + 0.03 < both


def test_ink_leaves_lines_on_white(draw: Draw) -> None:
    def colour(strength: float) -> float:
        picture = draw("ink, a red apple", strength, "ink")
        return float((picture.max(-1) - picture.min(-1)).mean())

    assert colour(1.0) < 0.2 * colour(0.0)
    drawn = draw("ink, a red apple", 1.0, "ink").mean(-1)
    assert (drawn > 230).mean() > 0.7 and (drawn < 80).mean() > 0.03


@pytest.mark.parametrize("lora", list(LORAS))
def test_strength_zero_is_the_base_and_strength_one_is_complete(session: Session, lora: str) -> None:
    prompt = f"{LORAS[lora].trigger}, a cat"

    def at(strength: float) -> Graph:
        return session.prepare(WORKFLOW, set={**changes(prompt, strength, lora), "6.steps": 3}, seed=7)

    graph: dict[str, Any] = at(0).to_api()
    graph["6"]["inputs"]["model"] = ["1", 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["1", 1]
    without = pixels(session.run(graph))
    assert np.array_equal(without, pixels(session.run(at(0))))
    run = session.run(at(1))
    (receipt,) = run.receipts
    assert receipt["complete"] and receipt["matched"] == receipt["total"] > 0
    assert not np.array_equal(without, pixels(run))
    assert np.array_equal(without, pixels(session.run(at(0))))


def test_the_shipped_files_are_small_and_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    files = [CHECKPOINT, *(lora.file for lora in LORAS.values())]
    assert sum(path.stat().st_size for path in files) <= 60e6
    for lora in LORAS.values():
        assert lora.file.stat().st_size <= 1.2e6
        assert exit_code_of(["lora", "inspect", str(lora.file), "--base", str(CHECKPOINT), "--json"]) == 0
        page = json.loads(capsys.readouterr().out)
        assert lora.trigger in json.dumps(page)
