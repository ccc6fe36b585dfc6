"""Emoji of three art sets as 128×128 pictures on white, and the derived styles that the demo LoRAs learn.

Sources (versions pinned in `PACKAGES`): Noto Emoji (Apache-2.0), Fluent Emoji flat and 3D (MIT), and the
English labels of emojibase (MIT). All come as npm packages, so one `npm pack` fetches each of them.
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
import resvg_py
from PIL import Image, ImageFilter

Style = Literal["noto", "flat", "3d"]

STYLES: tuple[Style, ...] = ("noto", "flat", "3d")
SIDE = 128
"""Pixels of a picture's side: sixteen latent cells."""
MASTER_SIDE = 256
"""Pixels at which a picture is drawn once; augmentation and reduction start from it."""
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "labels": "emojibase-data@17.0.0",
}


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


def read_concepts(table: Path, labels: Path) -> list[Concept]:
    """The curated table `concepts.txt`, with the code points looked up in emojibase."""
    entries = cast("list[dict[str, Any]]", json.loads((labels / "en" / "data.json").read_text("utf-8")))
    codes = {str(entry["label"]): _code(str(entry["hexcode"])) for entry in entries}
    concepts: list[Concept] = []
    for line in table.read_text("utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        label, _, names = (part.strip() for part in line.partition("|"))
        phrases = tuple(_with_article(name.strip()) for name in names.split(","))
        concepts.append(Concept(label, codes[label], phrases))
    return concepts


def _with_article(name: str) -> str:
    if name.startswith("-"):
        return name[1:]
    return f"{'an' if name[0] in 'aeiou' and not name.startswith('u') else 'a'} {name}"


class Artwork:
    """Draws any emoji in any of the three styles, at `MASTER_SIDE`, on white."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._icons = {key: _IconSet(places[key]) for key in ("noto", "flat")}
        self._files = {_code(path.stem): path for path in (places["3d"] / "assets").glob("*.webp")}

    def draw(self, code: str, style: Style) -> Image.Image:
        """The emoji with a margin of 1/24 on every side, so that small shifts keep it whole."""
        if style == "3d":
            picture = Image.open(self._files[code]).convert("RGBA")
        else:
            picture = self._icons[style].draw(code)
        inner = MASTER_SIDE * 11 // 12
        picture = picture.resize((inner, inner), Image.Resampling.LANCZOS)
        canvas = Image.new("RGBA", (MASTER_SIDE, MASTER_SIDE), "white")
        canvas.alpha_composite(picture, ((MASTER_SIDE - inner) // 2,) * 2)
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

    def draw(self, code: str) -> Image.Image:
        name = self._names[code]
        body = self._bodies[self._aliases.get(name, name)]
        width, height = self._box
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=512)))).convert("RGBA")


def placed(master: Image.Image, scale: float, dx: int, dy: int) -> Image.Image:
    """The picture at `SIDE`, drawn `scale` times its size and moved by `dx`, `dy` pixels; white outside."""
    size = round(SIDE * scale)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    offset = (SIDE - size) // 2
    canvas.paste(master.resize((size, size), Image.Resampling.LANCZOS), (offset + dx, offset + dy))
    return canvas


def pixel_art(master: Image.Image, cells: int = 8, colours: int = 12) -> Image.Image:
    """The picture as pixel art: box-reduced to `cells`², few colours, enlarged without smoothing.

    `SIDE / cells` is sixteen pixels, two latent cells: blocks of a single cell come back from the decoder as
    smooth shapes.
    """
    small = master.resize((cells, cells), Image.Resampling.BOX)
    few = small.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return few.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def blueprint(master: Image.Image) -> Image.Image:
    """The picture as a blueprint: its edges in white on blue."""
    grey = master.convert("L").filter(ImageFilter.GaussianBlur(1.5))
    values = np.asarray(grey, np.float32)
    down, across = np.gradient(values)
    edge = np.clip(np.hypot(down, across) / 14.0, 0.0, 1.0)[..., None]
    paper, ink = np.array([30.0, 70.0, 160.0]), np.array([245.0, 248.0, 255.0])
    mixed = paper * (1.0 - edge) + ink * edge
    return Image.fromarray(mixed.round().astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def charcoal(master: Image.Image) -> Image.Image:
    """The picture in greys, darker than its colours."""
    grey = np.asarray(master.resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("L"), np.float32) / 255.0
    dark = (255.0 * grey**1.8).round().astype(np.uint8)
    return Image.fromarray(dark).convert("RGB")
