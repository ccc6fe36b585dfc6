"""Copies what the tests need of a family's measured figures into tests/data/families.

    python scripts/family_figures.py FOLDER NAME…

FOLDER holds NAME.json and NAME.npz as measured on ComfyUI. Kept are the latents and pictures of all cases,
what they are made from (reference latents, given pictures), and of the changes that LoRA files make the norms
and the corners of one file; what is computed on the way there (noise, first predictions) is not, nor what
tests/data/families/text.npz has: the conditionings, and some of the given pictures.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "tests" / "data" / "families"
LEFT_OUT = ("cond", "vae_")
ON_THE_WAY = ("sigmas", "x0", "denoised0", "denoised_last", "cond", "cond_norm", "cond_head")
CORNERS_OF = "kohya.safetensors"
STATED = ("prompts", "negative", "cases", "lora", "lora_names", "sampling", "latent", "model_class")


def main() -> None:
    source = Path(sys.argv[1])
    for name in sys.argv[2:]:
        stated = json.loads((source / f"{name}.json").read_text("utf-8"))
        kept = {key: stated.get(key) for key in STATED}
        aliases = stated.get("lora_names") or {}
        kept["lora_names"] = {weight: sorted(_names(entry)) for weight, entry in aliases.items()}
        text = json.dumps(kept, ensure_ascii=False, sort_keys=True).encode()
        (TARGET / f"{name}.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))
        figures, texts = np.load(source / f"{name}.npz"), np.load(TARGET / "text.npz")
        needed = [key for key in figures.files if _is_needed(key) and f"{name}|{key}" not in texts]
        chosen = {key: figures[key] for key in needed}
        np.savez_compressed(TARGET / f"{name}.npz", **chosen)


def _names(aliases: list[object]) -> list[str]:
    """The aliases of one weight, listed as texts or as [text, rows]."""
    return [str(one[0]) if isinstance(one, list) else str(one) for one in aliases]


def _is_needed(key: str) -> bool:
    if key.startswith("lora|"):
        return key.split("|")[1] == CORNERS_OF
    return not key.startswith(LEFT_OUT) and key.split("|")[-1] not in ON_THE_WAY


if __name__ == "__main__":
    main()
