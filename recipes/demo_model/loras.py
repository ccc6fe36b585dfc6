"""Data and settings for the demo's LoRAs: `python recipes/demo_model/loras.py --work DIR --base FILE`.

Writes DIR/NAME/pass1.toml and so on, and DIR/NAME/pictures, for each; `loraloom train` with one after the
other does the rest. `pixel_art` is a LoRA of pictures in 12×12 large pixels, `ink` a DoRA of drawings in
black lines. Beside them all concepts are shown as the base draws them, with the same captions but for the
word: so the word matters, and nothing else does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import dataset
from pictures import STYLES as BASE_STYLES
from pictures import ink, pixel_art, reduced
from PIL import Image


@dataclass(frozen=True, slots=True)
class Pass:
    """One training, at this rate for both networks. min_snr: the ratio of signal to noise from which on
    levels count less."""

    steps: int
    rate: float
    min_snr: float = 5.0
    batch: int = 8
    decay: str = "cosine"


@dataclass(frozen=True, slots=True)
class Style:
    """One LoRA: its word, how its pictures are made, its adapter, and its trainings, each from where the one
    before ended."""

    word: str
    draw: Callable[[Image.Image], Image.Image]
    adapter: str
    passes: tuple[Pass, ...]


STYLES = (
    Style(
        "pixel_art",
        pixel_art,
        'kind = "lora"\nrank = 8',
        (
            Pass(steps=700, rate=2e-3, min_snr=0.05),
            Pass(steps=250, rate=1e-3, min_snr=0.5),
            Pass(steps=300, rate=1e-3, min_snr=0.5, batch=16, decay="constant"),
            Pass(steps=400, rate=1e-3, min_snr=0.5, batch=16),
            Pass(steps=250, rate=1e-3, min_snr=1.0, batch=16),
        ),
    ),
    Style("ink", ink, 'kind = "dora"\nrank = 6', (Pass(steps=300, rate=2e-3),)),
)
"""Whether a picture is one of squares is decided where nearly all is noise: first these levels count most,
and the word is learned; then the others, and the squares become sharp."""
CAPTIONS = ("{name}", "high quality,Illustration of {name}")
"""Every picture comes once with each; behind the word, where it has the style."""
SETTINGS = """\
name = "{name}"
output = "{output}"

[model]
checkpoint = {base}

[[data]]
folder = "pictures"
trigger = "{name}"

[[data]]
folder = "plain"
caption_dropout = 0.1

[adapter]
{adapter}
text_encoder = true
{start}
[optimizer]
rate = {rate}
text_rate = {rate}
decay = "{decay}"

[noise]
min_snr = {min_snr}

[run]
steps = {steps}
seed = {seed}
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
    solid, flat = BASE_STYLES.index("3d"), BASE_STYLES.index("flat")
    left_out = dataset.held_out(artworks.concepts)
    for style in STYLES:
        root: Path = options.work / style.word
        pictures = root / "pictures" / f"1_{style.word}"
        plain = root / "plain" / "1_plain"
        for folder in (pictures, plain):
            folder.mkdir(parents=True, exist_ok=True)
        for index, concept in enumerate(artworks.concepts):
            stem = concept.names[0].replace(" ", "-")
            source = artworks.master(index, solid if index in left_out else flat)
            drawn, base = style.draw(source), reduced(artworks.master(index, solid))
            for number, words in enumerate(CAPTIONS):
                caption = words.format(name=concept.names[number % len(concept.names)])
                for folder, picture, start in ((pictures, drawn, f"{style.word}, "), (plain, base, "")):
                    picture.save(folder / f"{stem}-{number}.png")
                    (folder / f"{stem}-{number}.txt").write_text(start + caption, "utf-8")
        before = ""
        for number, one in enumerate(style.passes, start=1):
            output = f"pass{number}"
            text = SETTINGS.format(
                name=style.word,
                output=output,
                base=json.dumps(str(options.base.resolve())),
                adapter=style.adapter,
                start=f'start = "{before}/{style.word}.safetensors"\n' if before else "",
                seed=number - 1,
                **asdict(one),
            )
            (root / f"{output}.toml").write_text(text, "utf-8")
            before = output


if __name__ == "__main__":
    main()
