"""Pictures through the autoencoder and back: `python recipes/demo_model/sheet.py --work DIR --to FILE`.

Takes the autoencoder as trained so far, with the decoder trained on where there is one. Of every pair the
drawn picture is above, what came back below. Prints the PSNR of each kind of pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import autoencoder
import dataset
import decoder
import torch
from pictures import SIDE
from PIL import Image
from torch import Tensor

SHOWN = ("cat face", "rose", "pizza", "house", "red apple", "automobile", "butterfly", "rocket")


def pairs(above: Tensor, below: Tensor, columns: int = 8) -> Image.Image:
    """Two rows for every `columns` pictures (uint8, N×3×H×W): the pictures, and those that belong to them."""
    rows = -(-len(above) // columns)
    canvas = Image.new("RGB", (columns * SIDE, 2 * rows * SIDE), "white")
    for index, pair in enumerate(zip(above, below, strict=True)):
        row, column = divmod(index, columns)
        for place, picture in enumerate(pair):
            drawn = Image.fromarray(picture.permute(1, 2, 0).numpy())
            canvas.paste(drawn, (column * SIDE, (2 * row + place) * SIDE))
    return canvas


def main() -> None:
    """Write the sheet and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args()
    work, recipe = options.work, autoencoder.AutoencoderRecipe()
    artworks = dataset.load(work)
    judged = dataset.autoencoder_pictures(artworks).judged
    if (work / autoencoder.FINISHED).exists():
        network = decoder.refined(autoencoder.finished(work, recipe), work, recipe)
    else:
        network = autoencoder.load_average(work, recipe)
    labels = [concept.label for concept in artworks.concepts]
    famous = [labels.index(label) for label in SHOWN]
    shown = torch.cat([dataset.styles_of(artworks, famous), judged["held out"][:4], judged["pixel art"][:4]])
    options.to.parent.mkdir(parents=True, exist_ok=True)
    pairs(shown, autoencoder.through(network, shown)).save(options.to)
    print(autoencoder.quality(network, judged))


if __name__ == "__main__":
    main()
