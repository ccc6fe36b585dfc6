"""Drives the real queue with simulated workers: how fast it hands out jobs, and where that bends.

    python benchmarks/queue_scale.py --workers 1000 --jobs 100000 --seconds 10

The queue's file, its thread, the dispatcher and its lanes are those of the server; only the workers are not
there: each says what a worker says of a job of one node, and waits instead of computing. With `--seconds 0`
nobody waits, so that the rate is the most that the queue can do.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil

from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.frames import Frame
from loraloom.jobs.job import Request, Status
from loraloom.jobs.notices import Notice
from loraloom.jobs.placement import Needs
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON

MODELS = 12
STEPS = 4
SUBMITTED_TOGETHER = 500


@dataclass
class Measured:
    """waits: from a worker's being free to its next job. loads: jobs whose model was not the one before."""

    waits: list[float] = field(default_factory=lambda: list[float]())
    loads: int = 0
    done: int = 0
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedWorker:
    """Speaks as a worker does."""

    def __init__(self, measured: Measured, seconds: float, chance: random.Random) -> None:
        self.last_sign = time.monotonic()
        self.alive, self.out_of_reach = True, False
        self._measured, self._seconds, self._chance = measured, seconds, chance
        self._said: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._free_since: float | None = None
        self._model = ""
        self._say(kind="ready", worker={"devices": []}, declared=None)

    async def start(self) -> SimulatedWorker:
        return self

    def _say(self, **message: Any) -> None:
        self._said.put_nowait((cast("dict[str, JSON]", message), b""))

    async def send(self, message: Mapping[str, JSON]) -> None:
        if message["order"] != "run":
            return
        if self._free_since is not None:
            self._measured.waits.append(time.monotonic() - self._free_since)
        request = cast("dict[str, Any]", message["request"])
        model = request["prompt"]["1"]["inputs"]["ckpt_name"]
        self._measured.loads += model != self._model
        self._model = model
        seconds = self._seconds * self._chance.uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(seconds, self._run, message["job"])

    def _run(self, job: JSON) -> None:
        self.last_sign = time.monotonic()
        self._say(kind="run_started", job=job, nodes=["1"], targets=["1"])
        self._say(kind="node_started", job=job, node="1", display="1", class_type="X")
        for step in range(STEPS):
            self._say(kind="progress", job=job, node="1", display="1", value=step + 1, max=STEPS)
        ui: JSON = {"images": [{"filename": f"{job}.png", "subfolder": "", "type": "output"}]}
        self._say(kind="node_finished", job=job, node="1", display="1", parent=None, class_type="X", ui=ui,
                  cached=False)  # fmt: skip
        self._say(kind="completed", job=job, executed=["1"])
        self._free_since = time.monotonic()

    async def receive(self) -> Frame | None:
        self.last_sign = time.monotonic()
        return await self._said.get()

    async def ask(self, message: Mapping[str, JSON], seconds: float) -> JSON:
        raise TimeoutError

    async def close(self) -> None:
        await self.kill()

    async def kill(self) -> None:
        self.alive = False

    async def gone(self) -> str:
        return "it ended"


def request(number: int, chance: random.Random) -> Request:
    inputs: dict[str, JSON] = {"ckpt_name": f"model-{chance.randrange(MODELS)}", "seed": number}
    padding: dict[str, JSON] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat " * 40}}
    return Request({"1": {"class_type": "X", "inputs": inputs}, **{str(i): padding for i in range(2, 12)}})


def needs(asked: Request) -> Needs:
    node = cast("dict[str, Any]", asked.prompt["1"])
    return Needs(frozenset({node["inputs"]["ckpt_name"]}))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def measure(folder: Path, workers: int, jobs: int, seconds: float) -> None:
    chance = random.Random(1)
    store = StoreThread(folder / "queue.db", max_pending=jobs, max_finished=10_000)
    dispatcher = Dispatcher(store, [], paused=True, needs=needs, log=sys.stderr.write)
    measured = Measured()

    def hear(notice: Notice) -> None:
        if notice.kind == "completed":
            measured.done += 1
            if measured.done == jobs:
                measured.finished.set()

    dispatcher.listen(hear)
    await dispatcher.start()
    for number in range(workers):
        dispatcher.add(f"w{number}", SimulatedWorker(measured, seconds, chance).start)
    begun = time.monotonic()
    for start in range(0, jobs, SUBMITTED_TOGETHER):
        several = range(start, min(jobs, start + SUBMITTED_TOGETHER))
        await asyncio.gather(*(dispatcher.submit(request(n, chance)) for n in several))
    submitted = time.monotonic() - begun
    begun, used = time.monotonic(), time.process_time()
    await dispatcher.pause(False)
    await measured.finished.wait()
    took, used = time.monotonic() - begun, time.process_time() - used
    counts = await dispatcher.read(lambda s: {str(status): s.count(status) for status in Status})
    await dispatcher.stop()
    store.close()
    memory = psutil.Process().memory_info().rss
    waits = [1000 * percentile(measured.waits, share) for share in (0.5, 0.99, 1.0)]
    sys.stdout.write(
        f"{workers} workers, {jobs} jobs of {seconds:g} s: submitted {jobs / submitted:.0f}/s\n"
        f"  done in {took:.1f} s, at best {jobs * seconds / workers:.1f} s ({jobs / took:.0f}/s); "
        f"{1000 * used / jobs:.2f} ms of processor a job\n"
        f"  a free worker waits p50 {waits[0]:.0f} ms, p99 {waits[1]:.0f} ms, most {waits[2]:.0f} ms\n"
        f"  models loaded {measured.loads} times; memory {memory >> 20} MB; {counts}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options.workers, options.jobs, options.seconds))


if __name__ == "__main__":
    main()
