"""How well the demo model draws what it is asked for, and what its LoRAs change.

    python benchmarks/demo_quality.py --checkpoint FILE --work DIR [--lora FILE --trigger WORD]

DIR is the recipe's work folder: its source pictures are drawn again from there. Every picture is made by the
engine (`loraloom.Session`), 20 steps of dpmpp_2m karras, CFG 4, fixed seeds, at the checkpoint's own size.

Retrieval: 100 captions of training pairs (concept, style), and the held-out pairs that training never saw. A
picture is right when, of the concepts in question, its own is nearest. The distance between two pictures
is the Euclidean distance of their features, to a concept the least of those to its pictures in all styles:
features: mean colours of 16×16 squares, and of every eighth of the picture the histogram of edge directions
(8 directions, weighted by the edge's strength), each part scaled to unit deviation over the references.

Of the training captions also: edge energy against that of the captions' training pictures, and the PSNR to
the nearest training picture. The border (`loraloom.demo.measures`) is measured on these without a LoRA, and
at every strength with one.

LoRA: the share of edges that lie on the grid of large pixels, and greyness, on 40 prompts: with the trigger
word, without it, and without the LoRA.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

import loraloom
from loraloom.demo.measures import clean_border, edge_energy, grey, on_grid, psnr

Features = NDArray[np.float64]
STEPS, CFG = 20, 4.0
THUMB = 96
CELL = 16
"""Pixels of a cell of pixel art."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FAMOUS = ("red apple", "rose", "cat face", "house", "pizza", "red heart", "automobile", "deciduous tree")


@dataclass(frozen=True, slots=True)
class Case:
    """One question: prompt, and the index of the concept that it is about."""

    prompt: str
    concept: int


def graph(
    checkpoint: str, side: int, prompt: str, seed: int, lora: str | None, strength: float
) -> dict[str, Any]:
    """The tutorial's workflow in API form."""
    model: list[Any] = ["1", 0]
    clip: list[Any] = ["1", 1]
    nodes: dict[str, Any] = {"1": _node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    if lora is not None:
        nodes["2"] = _node(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=lora,
            strength_model=strength,
            strength_clip=strength,
        )
        model, clip = ["2", 0], ["2", 1]
    nodes["3"] = _node("CLIPTextEncode", clip=clip, text=prompt)
    nodes["4"] = _node("CLIPTextEncode", clip=clip, text="")
    nodes["5"] = _node("EmptyLatentImage", width=side, height=side, batch_size=1)
    nodes["6"] = _node(
        "KSampler",
        model=model,
        positive=["3", 0],
        negative=["4", 0],
        latent_image=["5", 0],
        seed=seed,
        steps=STEPS,
        cfg=CFG,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        denoise=1.0,
    )
    nodes["7"] = _node("VAEDecode", samples=["6", 0], vae=["1", 2])
    nodes["8"] = _node("SaveImage", images=["7", 0], filename_prefix="demo")
    return nodes


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def side_of(checkpoint: Path) -> int:
    """The side of a model's pictures, as its header says it."""
    with safe_open(checkpoint, "np") as file:
        return int((file.metadata() or {})["modelspec.resolution"].partition("x")[0])


class Painter:
    """Draws prompts with one checkpoint, and perhaps a LoRA, through the engine."""

    def __init__(self, checkpoint: Path, lora: Path | None, folder: Path) -> None:
        for kind, path in (("checkpoints", checkpoint), ("loras", lora)):
            (folder / kind).mkdir()
            if path is not None:
                (folder / kind / path.name).symlink_to(path.resolve())
        self._checkpoint, self.side = checkpoint.name, side_of(checkpoint)
        self.lora = None if lora is None else lora.name
        self._session = loraloom.Session(folder, output_dir=folder / "output", dtype="fp32", metadata=False)

    def draw(self, prompt: str, seed: int, strength: float | None = None) -> Image.Image:
        """One picture. strength: of the LoRA; None: without its node."""
        lora = None if strength is None else self.lora
        run = self._session.run(graph(self._checkpoint, self.side, prompt, seed, lora, strength or 0.0))
        return run.images[0].convert("RGB")


def features(picture: Image.Image) -> tuple[Features, Features]:
    """Mean colours (16×16×3), and edge directions (8×8×8)."""
    small = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), np.float64) / 255.0
    grey = np.asarray(picture.resize((64, 64), Image.Resampling.BOX).convert("L"), np.float64) / 255.0
    down, across = np.gradient(grey)
    strength, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi
    bins = np.minimum((angle / np.pi * 8).astype(int), 7)
    histogram = np.zeros((8, 8, 8))
    rows, columns = np.indices(grey.shape) // 8
    np.add.at(histogram, (rows, columns, bins), strength)
    return small.ravel(), np.sqrt(histogram).ravel()


class Gallery:
    """Reference pictures of some concepts; finds the nearest."""

    def __init__(self, references: list[list[Image.Image]]) -> None:
        found = [[features(picture) for picture in pictures] for pictures in references]
        self._scales = [
            float(np.stack([f[part] for pictures in found for f in pictures]).std(0).mean() or 1.0)
            * len(found[0][0][part]) ** 0.5
            for part in (0, 1)
        ]
        self._known = [np.stack([self._joined(f) for f in pictures]) for pictures in found]

    def _joined(self, parts: tuple[Features, Features]) -> Features:
        return np.concatenate([part / scale for part, scale in zip(parts, self._scales, strict=True)])

    def nearest(self, picture: Image.Image) -> int:
        """The index of the nearest concept."""
        own = self._joined(features(picture))
        return int(np.argmin([np.linalg.norm(known - own, axis=1).min() for known in self._known]))


def pixels(picture: Image.Image) -> Features:
    """A picture's values as the measures take them."""
    return np.asarray(picture.convert("RGB"), np.float64)


def sheet(pictures: list[tuple[Image.Image, bool]], path: Path, columns: int = 20) -> None:
    """All pictures with a green or red edge for right or wrong."""
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * THUMB, rows * THUMB), "white")
    for index, (picture, right) in enumerate(pictures):
        frame = Image.new("RGB", (THUMB, THUMB), "#22aa44" if right else "#cc3333")
        frame.paste(picture.resize((THUMB - 4, THUMB - 4), Image.Resampling.LANCZOS), (2, 2))
        canvas.paste(frame, (index % columns * THUMB, index // columns * THUMB))
    canvas.save(path)


@dataclass(frozen=True, slots=True)
class References:
    """The recipe's pictures at the model's size: `pictures[concept][style]`."""

    names: list[str]
    labels: list[str]
    styles: tuple[str, ...]
    held: frozenset[int]
    pictures: list[list[Image.Image]]

    @classmethod
    def of(cls, work: Path, side: int) -> References:
        """Draw them, or read them where the recipe has drawn them."""
        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "demo_model"))
        dataset: Any = importlib.import_module("dataset")
        styles: tuple[str, ...] = importlib.import_module("pictures").STYLES
        artworks = dataset.load(work)
        concepts = artworks.concepts
        drawn = [
            [artworks.master(c, s).resize((side, side), Image.Resampling.BOX) for s in range(len(styles))]
            for c in range(len(concepts))
        ]
        names = [concept.names[0] for concept in concepts]
        labels = [concept.label for concept in concepts]
        return cls(names, labels, styles, dataset.held_out(concepts), drawn)

    def cases(self, most: int) -> tuple[list[Case], list[Case]]:
        """At most so many training pairs, the famous concepts first, and held-out ones."""
        order = [self.labels.index(label) for label in FAMOUS]
        order += [i for i in range(len(self.names)) if i not in order]
        training = [
            Case(self._caption(c, 0 if c in self.held else rank % len(self.styles)), c)
            for rank, c in enumerate(order[:most])
        ]
        flat = self.styles.index("flat")
        return training, [Case(self._caption(c, flat), c) for c in sorted(self.held)[:most]]

    def _caption(self, concept: int, style: int) -> str:
        return f"{self.names[concept]}, {self.styles[style]} style"

    def asked(self, case: Case) -> Image.Image:
        """The picture that a caption means."""
        style = next(s for s, name in enumerate(self.styles) if f"{name} style" in case.prompt)
        return self.pictures[case.concept][style]


def draw_all(painter: Painter, asked: list[Case], references: References, path: Path) -> list[Image.Image]:
    """The pictures of the cases; prints how many are right, writes their contact sheet."""
    gallery = Gallery([references.pictures[case.concept] for case in asked])
    shown: list[tuple[Image.Image, bool]] = []
    for index, case in enumerate(asked):
        picture = painter.draw(case.prompt, seed=1000 + index)
        shown.append((picture, gallery.nearest(picture) == index))
    sheet(shown, path)
    print(f"{path.stem}: {sum(right for _, right in shown)} of {len(asked)} ({path})", flush=True)
    return [picture for picture, _ in shown]


def likeness(drawn: list[Image.Image], asked: list[Case], references: References) -> None:
    """Print edge energy, PSNR to the nearest training picture and cleanness of the border."""
    flat = references.styles.index("flat")
    known = [
        pixels(picture)
        for concept, row in enumerate(references.pictures)
        for style, picture in enumerate(row)
        if style != flat or concept not in references.held
    ]
    meant = [edge_energy(pixels(references.asked(case))) for case in asked]
    made = [pixels(picture) for picture in drawn]
    energy = sum(edge_energy(picture) for picture in made) / sum(meant)
    nearest = [max(psnr(picture, other) for other in known) for picture in made]
    print(f"edge energy, of that of the training pictures: {energy:.3f}")
    print(
        f"PSNR to the nearest training picture: mean {np.mean(nearest):.2f} dB, least {min(nearest):.2f} dB"
    )
    print(
        f"border within 8 levels of the background: {np.mean([clean_border(p) for p in made]):.4f}",
        flush=True,
    )


def lora_effect(painter: Painter, prompts: list[str], trigger: str, out: Path) -> None:
    """The measures without the LoRA, with it but without its word, with both; borders at all strengths."""
    rows: dict[str, list[Image.Image]] = {"base": [], "LoRA": [], "LoRA and trigger": []}
    for index, prompt in enumerate(prompts):
        rows["base"].append(painter.draw(prompt, index))
        rows["LoRA"].append(painter.draw(prompt, index, 1.0))
        rows["LoRA and trigger"].append(painter.draw(f"{trigger}, {prompt}", index, 1.0))
    for name, drawn in rows.items():
        values = [pixels(picture) for picture in drawn]
        grid, greyness = np.mean([on_grid(v, CELL) for v in values]), np.mean([grey(v) for v in values])
        print(f"{name}: edges on the grid {grid:.4f}, greyness {greyness:.4f}", flush=True)
    shown = [(picture, True) for pictures in rows.values() for picture in pictures[:20]]
    sheet(shown, out / f"{trigger}.png", columns=min(20, len(prompts)))
    famous = [(p, s) for p in prompts[: len(FAMOUS)] for s in STRENGTHS]
    swept = [painter.draw(f"{trigger}, {prompt}", 0, strength) for prompt, strength in famous]
    sheet([(picture, True) for picture in swept], out / f"{trigger}-strengths.png", columns=len(STRENGTHS))
    for number, strength in enumerate(STRENGTHS):
        share = np.mean([clean_border(pixels(picture)) for picture in swept[number :: len(STRENGTHS)]])
        print(f"border at strength {strength:g}: {share:.4f}", flush=True)
    same = painter.draw(prompts[0], 0, 0.0).tobytes() == rows["base"][0].tobytes()
    print(f"strength 0 equals the base bit for bit: {same}")


def main() -> None:
    """Print the figures and write the contact sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="the recipe's work folder")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--trigger", default="pixel_art")
    parser.add_argument("--most", type=int, default=100, help="captions of each kind; fewer for a quick look")
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    references = References.of(options.work, side_of(options.checkpoint))
    training, unseen = references.cases(options.most)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        painter = Painter(options.checkpoint, options.lora, Path(folder))
        if options.lora is None:
            drawn = draw_all(painter, training, references, options.out / "training-captions.png")
            likeness(drawn, training, references)
            draw_all(painter, unseen, references, options.out / "held-out-pairs.png")
        else:
            prompts = [case.prompt.split(",")[0] for case in training[:40]]
            lora_effect(painter, prompts, options.trigger, options.out)


if __name__ == "__main__":
    main()
