"""Make the demo model from nothing: `python recipes/demo_model/make.py --work DIR`.

Stages, each resumable and skipped when done: autoencoder, latents, text, diffusion, decoder, export. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

STAGES = ("autoencoder", "latents", "text", "diffusion", "decoder", "export")


def main() -> None:
    """Parse the command line and run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for sources, states and results")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that train together, one thread each"
    )
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between saved states")
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--batch", type=int, help="pictures a step of autoencoder and decoder")
    parser.add_argument(
        "--minutes", type=float, help="what each training may take, in place of the recipe's steps"
    )
    parser.add_argument(
        "--eager", action="store_true", help="on cuda: launch every step's kernels anew, record no graph"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks: three times faster after some minutes (needs a C++ compiler)",
    )
    options = parser.parse_args()
    if options.minutes and options.device == "cpu" and options.workers > 1:
        parser.error("--minutes is for one process: add --workers 1")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    cache = Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "compiled")))
    for unfinished in cache.rglob("*.so"):  # a compiler that was stopped leaves an empty file
        if unfinished.stat().st_size == 0:
            unfinished.unlink()

    import loop
    import stages
    import torch
    import workers
    from autoencoder import AutoencoderRecipe

    logging.basicConfig(level=logging.INFO, format=workers.LOG_FORMAT)
    for stage in STAGES:
        if stage in options.stages:
            machine = loop.Machine(
                torch.device(options.device),
                save_every=options.save_every,
                compiled=options.compile,
                recorded=not options.eager,
                minutes=options.minutes,
            )
            vae = AutoencoderRecipe(batch=options.batch) if options.batch else AutoencoderRecipe()
            together = stage in stages.SHARED and machine.device.type == "cpu"
            workers.run(options.workers if together else 1, stages.ALL[stage], stages.Run(work, machine, vae))


if __name__ == "__main__":
    main()
