"""Z-Image-Turbo in its real shapes, with random weights: memory and time of a picture's first step.

    python benchmarks/full_size.py [--size 512] [--steps 1] [--stored bf16 fp8] [--folder FOLDER]

For each way to store the weights a file is written (bf16: 12.3 GB, fp8: 6.2 GB; kept in FOLDER if one is
given) and run in a process of its own: loader, sampler on a random conditioning of 77 tokens, the latent
saved. Printed are the file, the time of the first run and of a second with another seed, on the clock and of
processors, and the highest memory: what the process took of its own (anonymous) since it had imported
everything, also as a share of the file, and all of it together with the pages of the file that are mapped. A
weight is never there twice: what is anonymous stays far below the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402
from tests.published import Fixture  # noqa: E402
from tests.random_weights import write_random  # noqa: E402

from loraloom.engine.node import collect, node  # noqa: E402
from loraloom.nodes.sockets import Conditioning  # noqa: E402
from loraloom.sampling.types import Cond  # noqa: E402
from loraloom.session import Session  # noqa: E402

TEXT, TOKENS = 2560, 77
MATRICES = {"bf16": "BF16", "fp8": "F8_E4M3"}
GB = 1e9


@node("RandomConditioning", category="benchmark")
def random_conditioning() -> Conditioning:
    return (Cond(torch.randn(1, TOKENS, TEXT, generator=torch.Generator().manual_seed(1))),)


class Watch(threading.Thread):
    """The highest memory of this process, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.together = 0

    def run(self) -> None:
        process = psutil.Process()
        while True:
            self.together = max(self.together, process.memory_info().rss)
            self.anonymous = max(self.anonymous, anonymous(process))
            time.sleep(0.02)


def anonymous(process: psutil.Process) -> int:
    """Bytes of a process that no file holds."""
    held = process.memory_info()
    return held.rss - getattr(held, "shared", 0)


def timed(work: Callable[[], object]) -> str:
    """How long it takes, and how much of the processor, which other programs do not change so much."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - start:.1f} s ({time.process_time() - used:.1f} s of processors)"


def run(folder: Path, name: str, size: int, steps: int) -> None:
    graph: dict[str, Any] = {
        "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}},
        "text": {"class_type": "RandomConditioning", "inputs": {}},
        "empty": {
            "class_type": "EmptySD3LatentImage",
            "inputs": {"width": size, "height": size, "batch_size": 1},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["unet", 0], "positive": ["text", 0], "negative": ["text", 0],
                "latent_image": ["empty", 0], "seed": 1, "steps": steps, "cfg": 1.0,
                "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "full"}},
    }  # fmt: skip
    watch = Watch()
    with Session(folder, output_dir=folder / "output", nodes=collect(sys.modules[__name__])) as session:
        before = anonymous(psutil.Process())
        watch.start()
        first = timed(lambda: session.run(graph))
        graph["sample"]["inputs"]["seed"] = 2
        again = timed(lambda: session.run(graph))
    file = (folder / "diffusion_models" / name).stat().st_size
    own = watch.anonymous - before
    print(
        f"{name}: file {file / GB:.1f} GB; {size}×{size}, {steps} step{'s'[: steps > 1]} in"
        f" {session.memory.dtype}: first run {first}, the next {again}; highest memory"
        f" {own / GB:.1f} GB of its own ({own / file:.2f} of the file),"
        f" {watch.together / GB:.1f} GB with the mapped file"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--stored", nargs="*", choices=sorted(MATRICES), default=list(MATRICES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.folder, given.run, given.size, given.steps)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        (folder / "diffusion_models").mkdir(parents=True, exist_ok=True)
        for stored in given.stored:
            path = folder / "diffusion_models" / f"z_image_turbo_{stored}.safetensors"
            if not path.is_file():
                matrix = MATRICES[stored]
                z_image = Fixture.named("z_image_turbo")
                write_random(
                    path, z_image, lambda shape, matrix=matrix: matrix if len(shape) == 2 else "BF16"
                )
            command = [sys.executable, __file__, "--folder", str(folder), "--run", path.name]
            subprocess.run([*command, "--size", str(given.size), "--steps", str(given.steps)], check=True)
            if not given.folder:
                path.unlink()


if __name__ == "__main__":
    main()
