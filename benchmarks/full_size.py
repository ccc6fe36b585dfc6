"""Z-Image-Turbo in its real shapes, with random weights: memory and time of a picture's first step.

    python benchmarks/full_size.py [--size 512] [--steps 1] [--stored bf16 fp8] [--folder FOLDER]

For each way to store the weights a file is written (bf16: 12.3 GB, fp8: 6.2 GB; kept in FOLDER if one is
given) and run in a process of its own: loader, sampler on a random conditioning of 77 tokens, the latent
saved. Printed are the file, the time of the first run and of a second with another seed, and the highest
memory: what the process took of its own (anonymous) since it had imported everything, also as a share of the
file, and all of it together with the pages of the file that are mapped. A weight is never there twice: what
is anonymous stays far below the file.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402
from tests.published import Fixture  # noqa: E402

from loraloom.engine.node import collect, node  # noqa: E402
from loraloom.nodes.sockets import Conditioning  # noqa: E402
from loraloom.sampling.types import Cond  # noqa: E402
from loraloom.session import Session  # noqa: E402

TEXT, TOKENS = 2560, 77
TYPES = {"bf16": ("BF16", 2), "fp8": ("F8_E4M3", 1)}
BLOCK = 1 << 22
GB = 1e9


def write_model(path: Path, stored: str) -> None:
    """Random matrices in the type asked for, ones for the norms, all else bfloat16."""
    shapes = {name: shape for name, (_, shape) in Fixture.named("z_image_turbo").tensors.items()}
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        kind, size = TYPES[stored if len(shape) == 2 else "bf16"]
        begin, end = end, end + math.prod(shape) * size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            write_values(file, shape, stored)
    unfinished.rename(path)


def write_values(file: BinaryIO, shape: tuple[int, ...], stored: str) -> None:
    count = math.prod(shape)
    if len(shape) == 1:
        file.write(torch.ones(count, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
        return
    values = torch.randn(min(count, BLOCK), generator=torch.Generator().manual_seed(count))
    values /= math.sqrt(shape[-1])
    dtype = torch.float8_e4m3fn if stored == "fp8" else torch.bfloat16
    data = values.to(dtype).view(torch.uint8).numpy().tobytes()
    size = count * (len(data) // len(values))
    for begin in range(0, size, len(data)):
        file.write(data[: size - begin])


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
        start = time.perf_counter()
        session.run(graph)
        first = time.perf_counter() - start
        graph["sample"]["inputs"]["seed"] = 2
        start = time.perf_counter()
        session.run(graph)
        again = time.perf_counter() - start
    file = (folder / "diffusion_models" / name).stat().st_size
    own = watch.anonymous - before
    print(
        f"{name}: file {file / GB:.1f} GB; {size}×{size}, {steps} step{'s'[: steps > 1]} in"
        f" {session.memory.dtype}: first run {first:.1f} s, the next {again:.1f} s; highest memory"
        f" {own / GB:.1f} GB of its own ({own / file:.2f} of the file),"
        f" {watch.together / GB:.1f} GB with the mapped file"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--stored", nargs="*", choices=sorted(TYPES), default=list(TYPES))
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
                write_model(path, stored)
            command = [sys.executable, __file__, "--folder", str(folder), "--run", path.name]
            subprocess.run([*command, "--size", str(given.size), "--steps", str(given.steps)], check=True)
            if not given.folder:
                path.unlink()


if __name__ == "__main__":
    main()
