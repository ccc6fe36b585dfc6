"""Make the demo model from nothing: `python recipes/demo_model/make.py --work DIR`.

Stages, each resumable and skipped when done: autoencoder, text, diffusion, decoder, export. The decoder needs
only the autoencoder, so it may be trained beside text and diffusion: give each its own `--stages`.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

import autoencoder
import dataset
import decoder
import diffusion
import export
import text
from captions import Captioner

STAGES = ("autoencoder", "text", "diffusion", "decoder", "export")


def main() -> None:
    """Parse the command line and run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for sources, states and results")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between saved states")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the UNet: a third faster after five minutes (needs a C++ compiler)",
    )
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    artworks = dataset.load(work)
    vae_recipe, recipe = autoencoder.AutoencoderRecipe(), diffusion.DiffusionRecipe()
    pictures, weights = dataset.autoencoder_pictures(artworks)
    if "autoencoder" in options.stages:
        autoencoder.train(pictures, weights, work, vae_recipe, options.save_every, options.threads)
    vae = autoencoder.finish(pictures[: len(artworks.concepts) * 3], work, vae_recipe)
    encoded = autoencoder.encode(vae, pictures, work)
    latents, captioner = diffusion.choose_latents(artworks.concepts, encoded), Captioner(artworks.concepts)
    if "text" in options.stages:
        text.train(latents, captioner, work, recipe, options.threads)
    if "diffusion" in options.stages:
        diffusion.train(
            latents,
            captioner,
            text.trained(work, recipe),
            work,
            recipe,
            options.save_every,
            options.threads,
            options.compile,
        )
    if "decoder" in options.stages:
        decoder.train(
            vae, encoded.mean, pictures, weights, work, vae_recipe, options.save_every, options.threads
        )
    if "export" in options.stages:
        unet, encoder = diffusion.load_averages(work, recipe)
        told = {f"loraloom.recipe.{name}": str(value) for name, value in asdict(recipe).items()}
        made = decoder.refined(vae, work, vae_recipe)
        export.export(work / "loraloom-demo.safetensors", unet, encoder, made, told)


if __name__ == "__main__":
    main()
