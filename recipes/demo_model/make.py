"""Make the demo model from nothing: `python recipes/demo_model/make.py --work DIR`.

Stages, each resumable and skipped when done: autoencoder, diffusion, export.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import autoencoder
import dataset
import diffusion
from captions import Captioner

STAGES = ("autoencoder", "diffusion")


def main() -> None:
    """Parse the command line and run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for sources, states and results")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between saved states")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    artworks = dataset.load(work)
    vae_recipe, recipe = autoencoder.AutoencoderRecipe(), diffusion.DiffusionRecipe()
    pictures, weights = dataset.autoencoder_pictures(artworks)
    if "autoencoder" in options.stages:
        autoencoder.train(pictures, weights, work, vae_recipe, options.save_every, options.threads)
    if "diffusion" in options.stages:
        vae = autoencoder.finish(pictures[: len(artworks.concepts) * 3], work, vae_recipe)
        latents = diffusion.encode_pictures(artworks, vae, work)
        captioner = Captioner(artworks.concepts)
        diffusion.train(latents, captioner, work, recipe, options.save_every, options.threads)


if __name__ == "__main__":
    main()
