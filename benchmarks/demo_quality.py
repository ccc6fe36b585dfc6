"""How well the demo model draws what it is asked for.

    python benchmarks/demo_quality.py --checkpoint loraloom-demo.safetensors --work DIR [--lora FILE]

DIR is the recipe's work folder: its source pictures are drawn again from there. Every picture is made by the
engine (`loraloom.Session`), 20 steps of dpmpp_2m karras, CFG 4, fixed seeds.

Retrieval: 100 captions of training pairs (concept, style), and the 100 pairs that training never saw. A
picture is right when, of the 100 concepts in question, its own is nearest. The distance between two pictures
is the Euclidean distance of their features, to a concept the least of those to its pictures in three styles:
features: mean colours of 16×16 squares, and of every eighth of the picture the histogram of edge directions
(8 directions, weighted by the edge's strength), each part scaled to unit deviation over the references.

LoRA: block constancy on 50 prompts: the share of a picture's variance that lies between its 16×16 blocks
rather than within; with the trigger word, without it, and without the LoRA.
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

import loraloom

Features = NDArray[np.float64]
STEPS, CFG, SIDE = 20, 4.0, 128
THUMB = 96
BLOCK = 16
FAMOUS = ("red apple", "red heart", "cat face", "house", "rose", "pizza")


@dataclass(frozen=True, slots=True)
class Case:
    """One question: prompt, and the index of the concept that it is about."""

    prompt: str
    concept: int


def graph(checkpoint: str, prompt: str, seed: int, lora: str | None, strength: float) -> dict[str, Any]:
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
    nodes["5"] = _node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
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


class Painter:
    """Draws prompts with one checkpoint, and perhaps a LoRA, through the engine."""

    def __init__(self, checkpoint: Path, lora: Path | None, folder: Path) -> None:
        for kind, path in (("checkpoints", checkpoint), ("loras", lora)):
            (folder / kind).mkdir()
            if path is not None:
                (folder / kind / path.name).symlink_to(path.resolve())
        self._checkpoint = checkpoint.name
        self.lora = None if lora is None else lora.name
        self._session = loraloom.Session(folder, output_dir=folder / "output", dtype="fp32", metadata=False)

    def draw(self, prompt: str, seed: int, strength: float | None = None) -> Image.Image:
        """One picture. strength: of the LoRA; None: without its node."""
        lora = None if strength is None else self.lora
        run = self._session.run(graph(self._checkpoint, prompt, seed, lora, strength or 0.0))
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


def block_constancy(picture: Image.Image) -> float:
    """Share of the variance that lies between blocks (16×16 pixels): 1 for perfect blocks."""
    values, cells = np.asarray(picture, np.float64), SIDE // BLOCK
    blocks = values.reshape(cells, BLOCK, cells, BLOCK, 3).transpose(0, 2, 1, 3, 4).reshape(cells**2, -1, 3)
    total = values.reshape(-1, 3).var(0).sum()
    return float(1.0 - blocks.var(1).mean(0).sum() / total) if total else 1.0


def sheet(pictures: list[tuple[Image.Image, bool]], path: Path, columns: int = 20) -> None:
    """All pictures with a green or red edge for right or wrong."""
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * THUMB, rows * THUMB), "white")
    for index, (picture, right) in enumerate(pictures):
        frame = Image.new("RGB", (THUMB, THUMB), "#22aa44" if right else "#cc3333")
        frame.paste(picture.resize((THUMB - 4, THUMB - 4), Image.Resampling.LANCZOS), (2, 2))
        canvas.paste(frame, (index % columns * THUMB, index // columns * THUMB))
    canvas.save(path)


def retrieval(painter: Painter, cases: list[Case], artworks: Any, path: Path) -> int:
    """How many of the cases are right; writes their contact sheet."""
    concepts = [case.concept for case in cases]
    gallery = Gallery([[artworks.master(c, s) for s in range(3)] for c in concepts])
    shown: list[tuple[Image.Image, bool]] = []
    for index, case in enumerate(cases):
        picture = painter.draw(case.prompt, seed=1000 + index)
        shown.append((picture, gallery.nearest(picture) == index))
    sheet(shown, path)
    return sum(right for _, right in shown)


def cases(artworks: Any, held: dict[int, int], styles: tuple[str, ...]) -> tuple[list[Case], list[Case]]:
    """100 training pairs, the famous concepts first, and the held-out ones."""
    names = [concept.names[0] for concept in artworks.concepts]
    labels = [concept.label for concept in artworks.concepts]
    order = [labels.index(label) for label in FAMOUS]
    order += [i for i in range(len(names)) if i not in order]
    training: list[Case] = []
    for rank, concept in enumerate(order[:100]):
        seen = [s for s in range(len(styles)) if held.get(concept) != s]
        training.append(Case(f"{names[concept]}, {styles[seen[rank % len(seen)]]} style", concept))
    unseen = [Case(f"{names[c]}, {styles[s]} style", c) for c, s in sorted(held.items())[:100]]
    return training, unseen


def lora_effect(painter: Painter, prompts: list[str], trigger: str, out: Path) -> None:
    """Block constancy without the LoRA, with it but without its word, and with both."""
    rows: dict[str, list[Image.Image]] = {"base": [], "LoRA": [], "LoRA and trigger": []}
    for index, prompt in enumerate(prompts):
        rows["base"].append(painter.draw(prompt, index))
        rows["LoRA"].append(painter.draw(prompt, index, 1.0))
        rows["LoRA and trigger"].append(painter.draw(f"{trigger}, {prompt}", index, 1.0))
    for name, pictures in rows.items():
        print(f"block constancy, {name}: {np.mean([block_constancy(p) for p in pictures]):.4f}")
    shown = [(pictures[i], True) for pictures in rows.values() for i in range(20)]
    sheet(shown, out / "lora.png")
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
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "demo_model"))
    dataset: Any = importlib.import_module("dataset")
    styles: tuple[str, ...] = importlib.import_module("pictures").STYLES
    artworks = dataset.load(options.work)
    held: dict[int, int] = dataset.held_out(artworks.concepts)
    training, unseen = cases(artworks, held, styles)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        painter = Painter(options.checkpoint, options.lora, Path(folder))
        if options.lora is None:
            for name, asked in (("training captions", training), ("held-out pairs", unseen)):
                path = options.out / f"{name.replace(' ', '-')}.png"
                print(
                    f"{name}: {retrieval(painter, asked, artworks, path)} of {len(asked)} ({path})",
                    flush=True,
                )
        else:
            lora_effect(
                painter, [case.prompt.split(",")[0] for case in training[:50]], options.trigger, options.out
            )


if __name__ == "__main__":
    main()
