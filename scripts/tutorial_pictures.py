"""Draws every picture of docs/tutorial.md on the demo's model, into docs/pictures.

usage: .venv/bin/python scripts/tutorial_pictures.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from loraloom.contact_sheet import Axis, contact_sheet
from loraloom.demo.files import LORAS, MODELS, WORKFLOW
from loraloom.session import Session

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
ROSE = "high quality,Illustration of a single red rose in a vase"
APPLE = "a red apple"
PIXELS, INK = LORAS["pixel_art"], LORAS["ink"]
STRENGTHS = ("0", "0.25", "0.5", "0.75", "1", "1.5")
BOTH = ("2.strength_model", "2.strength_clip")


class Studio:
    """Draws the demo's workflow with changes, and lays pictures out."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._session, self._folder = session, folder

    def draw(self, *strengths: str, loras: Sequence[str] = (), **more: Any) -> Image:
        """strengths: of the model and of the text encoder, or one for both."""
        changes: Mapping[str, Any] = dict(zip(BOTH, (*strengths, *strengths)[:2], strict=False))
        return self._session.run(WORKFLOW, set={**changes, **more.get("set", {})}, loras=loras).images[0]

    def sheet(self, name: str, pictures: Sequence[Image], *axes: Axis) -> None:
        path = self._folder / f"{name}.webp"
        contact_sheet(pictures, axes).save(path, "WEBP", quality=88, method=6)
        print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main(folder: Path = PICTURES) -> None:
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as output, Session(MODELS, output_dir=output, dtype="fp32") as session:
        studio = Studio(session, folder)
        with_it, without = studio.draw("1"), studio.draw("0")
        studio.sheet("first", [with_it], Axis("", ("workflow.json as it is",)))
        studio.sheet("on-off", [with_it, without], Axis("", ("with the LoRA", "without it")))
        _words(studio)
        studio.sheet("strengths", [studio.draw(s, "1") for s in STRENGTHS], Axis("strength", STRENGTHS))
        few = ("0", "0.5", "1")
        cells = [studio.draw(model, clip) for model in few for clip in few]
        studio.sheet("two-strengths", cells, Axis("model", few), Axis("clip", few))
        loaders = Axis("", ("LoraLoader", "LoraLoaderModelOnly"))
        studio.sheet("loaders", [with_it, studio.draw("1", "0")], loaders)
        _chain(studio)


def _words(studio: Studio) -> None:
    """The trigger word and the LoRA, each there and not."""
    prompts = {"the word and the LoRA": (f"{PIXELS.trigger},{APPLE}", "1"), "the LoRA alone": (APPLE, "1"),
               "the word alone": (f"{PIXELS.trigger},{APPLE}", "0"), "neither": (APPLE, "0")}  # fmt: skip
    pictures = [studio.draw(strength, set={"3.text": text}) for text, strength in prompts.values()]
    studio.sheet("word", pictures, Axis("", tuple(prompts)))


def _chain(studio: Studio) -> None:
    """Two LoRAs, alone and together."""
    words = {"3.text": f"{PIXELS.trigger},{INK.trigger},{ROSE}"}
    second = (f"{INK.file.name}:0.8",)
    cells = {
        "pixel_art": studio.draw("1", set=words),
        "ink": studio.draw("0", set=words, loras=second),
        "both": studio.draw("0.8", set=words, loras=second),
    }
    studio.sheet("chain", [*cells.values()], Axis("", tuple(cells)))


if __name__ == "__main__":
    main()
