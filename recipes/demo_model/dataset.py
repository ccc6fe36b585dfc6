"""The drawn pictures as tensors: masters of every concept in every style, kept in the work folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pictures import SIDE, STYLES, Artwork, Concept, blueprint, fetch, pixel_art, placed, read_concepts
from PIL import Image
from state import read_tensors, write_tensors
from torch import Tensor

HELD_OUT = 100
"""Pairs of concept and style that training never sees; the benchmark asks for them."""
KEPT_WHOLE = frozenset({"red apple", "red heart", "cat face", "house", "rose", "pizza"})
"""Concepts of the tutorial: seen in every style."""


@dataclass(frozen=True, slots=True)
class Artworks:
    """`masters[concept, style]`: uint8, height × width × RGB at `MASTER_SIDE`."""

    concepts: list[Concept]
    masters: Tensor

    def master(self, concept: int, style: int) -> Image.Image:
        """One picture at its drawn size."""
        return Image.fromarray(self.masters[concept, style].numpy())


def load(work: Path) -> Artworks:
    """Draw everything once (half a minute), then read it from `work/masters.safetensors`."""
    places = fetch(work / "sources")
    concepts = read_concepts(Path(__file__).with_name("concepts.txt"), places["labels"])
    path = work / "masters.safetensors"
    if not path.exists():
        artwork = Artwork(places)
        drawn = [[np.asarray(artwork.draw(c.code, style)) for style in STYLES] for c in concepts]
        write_tensors(path, {"masters": torch.from_numpy(np.asarray(drawn))}, {})
    return Artworks(concepts, read_tensors(path)[0]["masters"])


def held_out(concepts: list[Concept]) -> dict[int, int]:
    """Index of concept → index of the style that is held out; the same on every machine."""
    open_to_choice = [i for i, concept in enumerate(concepts) if concept.label not in KEPT_WHOLE]
    order = torch.randperm(len(open_to_choice), generator=torch.Generator().manual_seed(13)).tolist()
    return {open_to_choice[at]: rank % len(STYLES) for rank, at in enumerate(order[:HELD_OUT])}


def as_tensor(picture: Image.Image) -> Tensor:
    """A picture as uint8, 3 × height × width."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def autoencoder_pictures(artworks: Artworks) -> tuple[Tensor, Tensor]:
    """What the autoencoder sees, and how often: all styles, and in a fifth of the cases the LoRAs' two."""
    plain, styled = [], []
    for concept in range(len(artworks.concepts)):
        plain += [
            as_tensor(placed(artworks.master(concept, style), 1.0, 0, 0)) for style in range(len(STYLES))
        ]
        master = artworks.master(concept, 0)
        styled += [as_tensor(pixel_art(master, 16)), as_tensor(blueprint(master))]
    weights = torch.cat(
        [torch.full((len(plain),), 0.8 / len(plain)), torch.full((len(styled),), 0.2 / len(styled))]
    )
    assert plain[0].shape == (3, SIDE, SIDE)
    return torch.stack(plain + styled), weights
