"""Fluent Emoji in two styles as 192×192 pictures on white, and the styles that the demo LoRAs learn.

Sources (versions pinned in `PACKAGES`): Fluent Emoji flat and 3D, and emojibase's English labels (all MIT).
All come as npm packages, so one `npm pack` fetches each of them.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageFilter

Style = Literal["3d", "flat"]

STYLES: tuple[Style, ...] = ("3d", "flat")
"""The first is what prompts without a word of style mean."""
SIDE = 192
"""Pixels of a picture's side: 24 latent cells, 12 cells of pixel art."""
CELLS = 12
"""Cells a side of pixel art, each of two latent cells: blocks of one come back as smooth shapes."""
MASTER_SIDE = 2 * SIDE
"""Pixels at which a picture is drawn once; reduction starts from it."""
PACKAGES = {
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "labels": "emojibase-data@17.0.0",
}
STRANGE_GROUPS = (0, 3, 4, 5, 6, 7)
"""Emojibase's groups of single things: smileys, animals, food, travel, activities, objects."""


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing the model can draw: the emoji's label, its code points, and its names with their articles."""

    label: str
    code: str
    names: tuple[str, ...]


def fetch(folder: Path) -> dict[str, Path]:
    """Unpack the source packages below `folder` (kept between runs) and return their folders."""
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, Path] = {}
    for key, spec in PACKAGES.items():
        place = folder / key
        if not (place / "package").is_dir():
            name = subprocess.run(
                ["npm", "pack", "--silent", spec], cwd=folder, check=True, capture_output=True, text=True
            ).stdout.split()[-1]
            with tarfile.open(folder / name) as archive:
                archive.extractall(place, filter="data")
        places[key] = place / "package"
    return places


def _code(text: str) -> str:
    return text.lower().replace("-fe0f", "")


def _labels(folder: Path) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", json.loads((folder / "en" / "data.json").read_text("utf-8")))


def read_concepts(table: Path, labels: Path) -> list[Concept]:
    """The curated table `concepts.txt`, with the code points looked up in emojibase."""
    codes = {str(entry["label"]): _code(str(entry["hexcode"])) for entry in _labels(labels)}
    concepts: list[Concept] = []
    for line in table.read_text("utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        label, _, names = (part.strip() for part in line.partition("|"))
        phrases = tuple(_with_article(name.strip()) for name in names.split(","))
        concepts.append(Concept(label, codes[label], phrases))
    return concepts


def strangers(labels: Path, concepts: list[Concept]) -> list[str]:
    """Code points of single things beside `concepts`: with them the autoencoder learns drawing."""
    known = {concept.code for concept in concepts}
    codes = [_code(str(e["hexcode"])) for e in _labels(labels) if e.get("group") in STRANGE_GROUPS]
    return [code for code in codes if code not in known]


def _with_article(name: str) -> str:
    if name.startswith("-"):
        return name[1:]
    return f"{'an' if name[0] in 'aeiou' and not name.startswith('u') else 'a'} {name}"


class Artwork:
    """Draws emoji in both styles, at `MASTER_SIDE`, on white."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._flat = _IconSet(places["flat"])
        self._files = {_code(path.stem): path for path in (places["3d"] / "assets").glob("*.webp")}

    def has(self, code: str) -> bool:
        """Whether both styles have this emoji."""
        return code in self._files and code in self._flat

    def draw(self, code: str, style: Style) -> Image.Image:
        """The emoji cut to its outline, its longer side ten of the twelve cells long, in the middle."""
        picture = Image.open(self._files[code]).convert("RGBA") if style == "3d" else self._flat.draw(code)
        solid = picture.getchannel("A").point([0] * 32 + [255] * 224)
        picture = picture.crop(solid.getbbox())
        scale = MASTER_SIDE * (CELLS - 2) / CELLS / max(picture.size)
        width, height = (round(length * scale) for length in picture.size)
        canvas = Image.new("RGBA", (MASTER_SIDE, MASTER_SIDE), "white")
        canvas.alpha_composite(
            picture.resize((width, height), Image.Resampling.LANCZOS),
            ((MASTER_SIDE - width) // 2, (MASTER_SIDE - height) // 2),
        )
        return canvas.convert("RGB")


class _IconSet:
    """An Iconify JSON set: drawings by name, names by code points."""

    def __init__(self, folder: Path) -> None:
        icons = cast("dict[str, Any]", json.loads((folder / "icons.json").read_text("utf-8")))
        names = cast("dict[str, str]", json.loads((folder / "chars.json").read_text("utf-8")))
        self._names = {_code(code): name for code, name in names.items()}
        self._bodies = {name: str(icon["body"]) for name, icon in icons["icons"].items()}
        self._aliases = {name: str(alias["parent"]) for name, alias in icons.get("aliases", {}).items()}
        self._box = (int(icons.get("width", 16)), int(icons.get("height", 16)))

    def __contains__(self, code: str) -> bool:
        return code in self._names

    def draw(self, code: str) -> Image.Image:
        import resvg_py

        name = self._names[code]
        body = self._bodies[self._aliases.get(name, name)]
        width, height = self._box
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=512)))).convert("RGBA")


def reduced(master: Image.Image) -> Image.Image:
    """The picture as the model is to draw it, at `SIDE`."""
    return master.resize((SIDE, SIDE), Image.Resampling.BOX)


def pixel_art(master: Image.Image, colours: int = 12) -> Image.Image:
    """The picture as pixel art: few colours, of which each cell takes the one that fills most of it."""
    few = master.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = np.asarray(few.convert("RGB"))
    numbers = np.asarray(few)
    size = MASTER_SIDE // CELLS
    cells = numbers.reshape(CELLS, size, CELLS, size).transpose(0, 2, 1, 3).reshape(CELLS, CELLS, -1)
    counts = np.stack([(cells == number).sum(-1) for number in range(colours)], -1)
    colour_of = np.stack(
        [palette[numbers == n].mean(0) if (numbers == n).any() else np.zeros(3) for n in range(colours)]
    )
    drawn = colour_of[counts.argmax(-1)].round().astype(np.uint8)
    return Image.fromarray(drawn).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def ink(master: Image.Image) -> Image.Image:
    """The picture as a drawing in ink: its edges in near black on white."""
    values = np.asarray(master.filter(ImageFilter.GaussianBlur(2.0)), np.float32)
    down, across = np.gradient(values, axis=(0, 1))
    edge = np.clip(np.hypot(down, across).max(-1) / 9.0 - 0.35, 0.0, 1.0)[..., None]
    mixed = 255.0 * (1.0 - edge) + np.array([24.0, 24.0, 40.0]) * edge
    return reduced(Image.fromarray(mixed.round().astype(np.uint8)))
