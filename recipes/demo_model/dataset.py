"""The drawn pictures as tensors, kept in the work folder: every concept in both styles, and strangers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pictures import STYLES, Artwork, Concept, fetch, ink, pixel_art, read_concepts, reduced, strangers
from PIL import Image
from state import read_tensors, write_tensors
from torch import Tensor

HELD_OUT = 40
"""Concepts whose flat picture training never sees; the benchmark asks for them."""
KEPT_WHOLE = frozenset(
    {"red apple", "red heart", "cat face", "house", "rose", "pizza", "automobile", "deciduous tree"}
)
"""Concepts of the tutorial and the sheets: seen in both styles."""
STRANGERS = 500
SHARES = {"known": 0.5, "strange": 0.25, "pixel_art": 0.15, "ink": 0.1}
"""How often the autoencoder sees what."""


@dataclass(frozen=True, slots=True)
class Artworks:
    """`masters[concept, style]` at `MASTER_SIDE`, `strange[picture]` at `SIDE`: uint8, H × W × RGB."""

    concepts: list[Concept]
    masters: Tensor
    strange: Tensor

    def master(self, concept: int, style: int) -> Image.Image:
        """One picture at its drawn size."""
        return Image.fromarray(self.masters[concept, style].numpy())


def load(work: Path) -> Artworks:
    """Draw everything once (a minute), then read it from `work/masters.safetensors`."""
    places = fetch(work / "sources")
    concepts = read_concepts(Path(__file__).with_name("concepts.txt"), places["labels"])
    path = work / "masters.safetensors"
    if not path.exists():
        artwork = Artwork(places)
        drawn = [[np.asarray(artwork.draw(c.code, style)) for style in STYLES] for c in concepts]
        others = [code for code in strangers(places["labels"], concepts) if artwork.has(code)]
        chosen = others[:: max(1, len(others) // STRANGERS)][:STRANGERS]
        beside = [np.asarray(reduced(artwork.draw(code, style))) for code in chosen for style in STYLES]
        tensors = {"masters": np.asarray(drawn), "strange": np.asarray(beside)}
        write_tensors(path, {name: torch.from_numpy(values) for name, values in tensors.items()}, {})
    tensors, _ = read_tensors(path)
    return Artworks(concepts, tensors["masters"], tensors["strange"])


def held_out(concepts: list[Concept]) -> frozenset[int]:
    """Concepts whose flat picture is held out; the same on every machine."""
    open_to_choice = [i for i, concept in enumerate(concepts) if concept.label not in KEPT_WHOLE]
    order = torch.randperm(len(open_to_choice), generator=torch.Generator().manual_seed(13)).tolist()
    return frozenset(open_to_choice[at] for at in order[:HELD_OUT])


def training_pairs(concepts: list[Concept]) -> list[tuple[int, int]]:
    """Concept and style of every picture that the model may see."""
    left_out = held_out(concepts)
    return [
        (c, s)
        for c in range(len(concepts))
        for s in range(len(STYLES))
        if not (STYLES[s] == "flat" and c in left_out)
    ]


def as_tensor(picture: Image.Image) -> Tensor:
    """A picture as uint8, 3 × height × width."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def styles_of(artworks: Artworks, concepts: list[int]) -> Tensor:
    """Pictures of these concepts (uint8, N×3×192×192): all in the first style, then all in the second."""
    return torch.stack(
        [as_tensor(reduced(artworks.master(c, s))) for s in range(len(STYLES)) for c in concepts]
    )


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the autoencoder learns from (uint8, N×3×192×192; the training pairs come first), how often it sees
    each, and by name what its quality is measured on."""

    seen: Tensor
    weights: Tensor
    judged: dict[str, Tensor]


def autoencoder_pictures(artworks: Artworks) -> Pictures:
    """Known pairs, strangers and the LoRAs' styles; held-out pictures are judged only."""
    left_out, flat = held_out(artworks.concepts), STYLES.index("flat")
    visible = [c for c in range(len(artworks.concepts)) if c not in left_out]
    known = [as_tensor(reduced(artworks.master(c, s))) for c, s in training_pairs(artworks.concepts)]
    unseen = [as_tensor(reduced(artworks.master(c, flat))) for c in sorted(left_out)]
    parts = {
        "known": known,
        "strange": [picture.permute(2, 0, 1) for picture in artworks.strange],
        "pixel_art": [as_tensor(pixel_art(artworks.master(c, flat))) for c in visible],
        "ink": [as_tensor(ink(artworks.master(c, flat))) for c in visible],
    }
    weights = [torch.full((len(part),), SHARES[name] / len(part)) for name, part in parts.items()]
    judged = {
        "held out": torch.stack(unseen[:: max(1, len(unseen) // 5)]),
        "known": torch.stack(known[:: max(1, len(known) // 6)]),
        "pixel art": torch.stack(parts["pixel_art"][:: max(1, len(visible) // 4)]),
    }
    return Pictures(torch.cat([torch.stack(part) for part in parts.values()]), torch.cat(weights), judged)
