"""Many jobs with changing LoRA stacks through `loraloom serve` on the demo model: what grows, what changes?

python benchmarks/soak.py --jobs 20000 [--batch off]

The first round draws every prompt once; all further rounds draw them in another order, so that others are
drawn together. With `--batch off` they must give the same pixels, bit for bit; else a few values may differ
by the one step that rounding makes in a batch of another size. Some jobs fail and some are cancelled on the
way. Memory, descriptors and threads of the server and its worker are printed after every round, and at the
end how much they grew after the first 500 jobs (medians of twenty rounds). Fails when memory has drifted by
more than 2 %, a descriptor or thread is left over, or a picture differs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_low
from typing import IO, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loraloom.demo.files import CHECKPOINT, LORAS, MODELS

SUBJECTS = ("a rose", "a cat", "a red car", "a house", "a fish", "the moon", "a green tree", "a cup")
WARM_JOBS = 500
ROUNDS = 20
"""What is used differs from round to round: what is compared are the medians of so many."""
MOST_DRIFT = 0.02
MOST_ROUNDED = 0.001
"""Share of a picture's values that may differ by one step of 255 where jobs are drawn in common batches."""
LONGEST_WAIT = 1.0
"""Seconds between two looks at a job."""


Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Usage:
    """megabytes: resident; of one process."""

    megabytes: float
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.megabytes:.1f} MB, {self.descriptors} descriptors, {self.threads} threads"

    @classmethod
    def of(cls, pid: int) -> Usage:
        if sys.platform != "linux":
            sys.exit("what the processes hold is read from /proc: this runs on Linux only")
        folder = Path("/proc") / str(pid)
        pages = int((folder / "statm").read_text().split()[1])
        size = os.sysconf("SC_PAGE_SIZE")
        return cls(pages * size / 1e6, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))

    @classmethod
    def typical(cls, found: Sequence[Usage]) -> Usage:
        """The medians of several."""
        return cls(
            median(one.megabytes for one in found),
            median_low(one.descriptors for one in found),
            median_low(one.threads for one in found),
        )


def prompt(rng: random.Random, side: int) -> dict[str, Any]:
    """A graph with a stack of up to three LoRAs of random strengths."""
    graph: dict[str, Any] = {"load": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT.name)}
    model, clip = ["load", 0], ["load", 1]
    for number in range(rng.randrange(4)):
        name = f"lora{number}"
        strengths = {f"strength_{part}": round(rng.uniform(-0.5, 1.5), 2) for part in ("model", "clip")}
        file = rng.choice([*LORAS]) + ".safetensors"
        graph[name] = _node("LoraLoader", model=model, clip=clip, lora_name=file, **strengths)
        model, clip = [name, 0], [name, 1]
    sampler = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return graph | {
        "yes": _node("CLIPTextEncode", clip=clip, text=rng.choice(SUBJECTS)),
        "no": _node("CLIPTextEncode", clip=clip, text=""),
        "empty": _node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "sample": _node(
            "KSampler", model=model, positive=["yes", 0], negative=["no", 0], latent_image=["empty", 0],
            seed=rng.randrange(1 << 31), **sampler,
        ),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": _node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip


def failing() -> dict[str, Any]:
    """A graph that is accepted and fails: a latent of 16 channels for a decoder of 4."""
    return {
        "load": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT.name),
        "empty": _node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "decode": _node("VAEDecode", samples=["empty", 0], vae=["load", 2]),
        "save": _node("PreviewImage", images=["decode", 0]),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


class Server:
    """`loraloom serve` on the demo's models."""

    def __init__(self, folder: Path, batch: str) -> None:
        """batch: as for `loraloom serve`."""
        command = [sys.executable, "-m", "loraloom", "serve", "--port", "0", "--models", str(MODELS)]
        more = ["--no-frontend", "--dtype", "fp32", "--batch", batch]
        self.process = subprocess.Popen([*command, *more], cwd=folder, stderr=subprocess.PIPE, text=True)
        lines = cast("IO[str]", self.process.stderr)
        self.url = next(line.split()[-1] for line in lines if "listens on" in line)

    def call(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=120) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def job(self, graph: dict[str, Any]) -> str:
        return self.call("/prompt", {"prompt": graph})["prompt_id"]

    def done(self, job_id: str) -> dict[str, Any]:
        wait = 0.05
        while (job := self.call(f"/v1/jobs/{job_id}"))["status"] in ("pending", "running"):
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        return job

    def pixels(self, job: dict[str, Any]) -> Pixels:
        with urllib.request.urlopen(self.url + job["outputs"][0]["url"], timeout=60) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())))

    def usage(self) -> dict[str, Usage]:
        """Of the server and of its worker, the child that runs `loraloom.jobs.worker`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        workers = [p for p in children if b"loraloom.jobs.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return {"server": Usage.of(self.process.pid), "worker": Usage.of(int(workers[0]))}


@contextmanager
def served(batch: str) -> Generator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), batch)
        try:
            yield server
        finally:
            server.process.terminate()
            server.process.communicate()


def soak(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)
    prompts = [prompt(rng, options.side) for _ in range(options.prompts)]
    first: dict[int, Pixels] = {}
    other = rounded = count = rounds = failed = cancelled = not_drawn = 0
    cold: list[dict[str, Usage]] = []
    warm: list[dict[str, Usage]] = []
    until = time.monotonic() + options.minutes * 60
    while count < options.jobs and time.monotonic() < until:
        order = rng.sample(range(len(prompts)), len(prompts))
        drawn = [(number, server.job(prompts[number])) for number in order]
        wrong = [server.job(failing()) for _ in prompts if rng.random() < 0.05]
        left = [server.job(rng.choice(prompts)) for _ in prompts if rng.random() < 0.05]
        for job_id in left:
            server.call(f"/v1/jobs/{job_id}/cancel", {})
        for number, job_id in drawn:
            job = server.done(job_id)
            if job["status"] != "completed":
                not_drawn += 1
                continue
            found = server.pixels(job)
            before = first.setdefault(number, found)
            if not np.array_equal(before, found):
                is_rounding = options.batch != "off" and differs_by_rounding(before, found)
                other, rounded = other + (not is_rounding), rounded + is_rounding
        failed += sum(server.done(job_id)["status"] == "failed" for job_id in wrong) - len(wrong)
        cancelled += sum(server.done(job_id)["status"] == "cancelled" for job_id in left)
        count += len(drawn) + len(wrong) + len(left)
        rounds += 1
        now = server.usage()
        said = "; ".join(f"{name} {usage}" for name, usage in now.items())
        print(f"{count} jobs, {other} differ, {rounded} by rounding; {said}", file=sys.stderr, flush=True)
        (warm if count >= WARM_JOBS else cold).append(now)
    return {
        "jobs": count,
        "rounds": rounds,
        "prompts": len(prompts),
        "cancelled": cancelled,
        "not_drawn": not_drawn,
        "not_failed_as_they_should": -failed,
        "other_pixels": other,
        "rounded": rounded,
        **growth(warm[:ROUNDS] or cold, warm[-ROUNDS:] or cold),
    }


def differs_by_rounding(before: Pixels, now: Pixels) -> bool:
    """Whether two pictures of one size differ in few values, and there by one step."""
    if before.shape != now.shape:
        return False
    steps = np.abs(before.astype(np.int16) - now.astype(np.int16))
    return bool(steps.max() <= 1) and float((steps > 0).mean()) <= MOST_ROUNDED


def growth(first: list[dict[str, Usage]], last: list[dict[str, Usage]]) -> dict[str, float]:
    """From the first rounds to the last: memory as a share of what it was, descriptors and threads."""
    found: dict[str, float] = {}
    for name in first[0]:
        before, after = (Usage.typical([one[name] for one in rounds]) for rounds in (first, last))
        found[f"{name}_megabytes"] = round(after.megabytes, 1)
        found[f"{name}_drift"] = round(after.megabytes / before.megabytes - 1, 4)
        found[f"{name}_descriptors"] = after.descriptors - before.descriptors
        found[f"{name}_threads"] = after.threads - before.threads
    return found


def held(found: dict[str, float]) -> bool:
    """Whether nothing has grown and nothing has changed."""
    nothing = ("not_drawn", "not_failed_as_they_should", "other_pixels")
    grown = [value for name, value in found.items() if name.endswith(("_descriptors", "_threads"))]
    drift = [value for name, value in found.items() if name.endswith("_drift")]
    return not any(found[name] for name in nothing) and max(grown) <= 0 and max(drift) <= MOST_DRIFT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=600.0, help="stops earlier after these")
    parser.add_argument("--prompts", type=int, default=20, help="different ones, drawn once a round")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", default="auto", help="as for `loraloom serve`")
    options = parser.parse_args()
    with served(options.batch) as server:
        found = soak(server, options)
    print(json.dumps(found, indent=1))
    sys.exit(not held(found))


if __name__ == "__main__":
    main()
