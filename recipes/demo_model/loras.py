"""Data and settings for the demo's LoRAs: `python recipes/demo_model/loras.py --work DIR --base FILE`.

Writes DIR/NAME/settings.toml and DIR/NAME/pictures for each; `loraloom train DIR/NAME/settings.toml` does the
rest. `pixel_art` is a LoRA of pictures in 12×12 large pixels, `ink` a DoRA of drawings in black lines. Beside
them all concepts are shown as the base draws them, without the word: so the word matters.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dataset
from pictures import STYLES as BASE_STYLES
from pictures import ink, pixel_art, reduced
from PIL import Image


@dataclass(frozen=True, slots=True)
class Style:
    """One LoRA: its word, how its pictures are made, and what of the settings is its own."""

    word: str
    draw: Callable[[Image.Image], Image.Image]
    adapter: str
    learning: str
    steps: int
    batch: int


STYLES = (
    Style(
        "pixel_art",
        pixel_art,
        'kind = "lora"\nrank = 8',
        "[optimizer]\nrate = 2e-3\n\n[noise]\nmin_snr = 0.5",
        steps=600,
        batch=8,
    ),
    Style("ink", ink, 'kind = "dora"\nrank = 6', "[optimizer]\nrate = 2e-3", steps=300, batch=8),
)
"""Whether a picture is one of squares is decided where nearly all is noise: min_snr makes that count more."""
CAPTIONS = ("{word}, {name}", "{word},high quality,Illustration of {name}")
"""Every picture comes once with each."""
SETTINGS = """\
name = "{name}"
output = "run"

[model]
checkpoint = {base}

[[data]]
folder = "pictures"
trigger = "{name}"
caption_dropout = 0.05

[[data]]
folder = "plain"

[adapter]
{adapter}
text_encoder = true

{learning}

[run]
steps = {steps}
batch = {batch}
resolution = 192
dtype = "bf16"
device = "cpu"
save_every = 50

[validation]
share = 0.0

[samples]
prompts = ["{name},high quality,Illustration of a single red rose", "{name}, a cat", "a red apple"]
cfg = 4.0
sampler = "dpmpp_2m"
scheduler = "karras"
every = 200

[metadata]
"modelspec.author" = "The Loraloom authors"
"modelspec.license" = "Apache-2.0"
"""


def main() -> None:
    """Write folders and settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="the demo checkpoint")
    options = parser.parse_args()
    artworks = dataset.load(options.work)
    flat = BASE_STYLES.index("flat")
    left_out = dataset.held_out(artworks.concepts)
    for style in STYLES:
        root: Path = options.work / style.word
        pictures = root / "pictures" / f"1_{style.word}"
        plain = root / "plain" / "1_plain"
        for folder in (pictures, plain):
            folder.mkdir(parents=True, exist_ok=True)
        for index, concept in enumerate(artworks.concepts):
            stem = concept.names[0].replace(" ", "-")
            if index not in left_out:
                picture = style.draw(artworks.master(index, flat))
                for number, words in enumerate(CAPTIONS):
                    picture.save(pictures / f"{stem}-{number}.png")
                    caption = words.format(word=style.word, name=concept.names[0])
                    (pictures / f"{stem}-{number}.txt").write_text(caption, "utf-8")
            reduced(artworks.master(index, 0)).save(plain / f"{stem}.png")
            (plain / f"{stem}.txt").write_text(concept.names[0], "utf-8")
        text = SETTINGS.format(
            name=style.word,
            base=json.dumps(str(options.base.resolve())),
            adapter=style.adapter,
            learning=style.learning,
            steps=style.steps,
            batch=style.batch,
        )
        (root / "settings.toml").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
