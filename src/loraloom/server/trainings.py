"""Training runs, each a child process (`loraloom train`) with a folder of its own; one runs at a time.

A folder holds `settings.toml`, what the page was told (`plan.json`), the numbers of every step
(`steps.jsonl`), what the process said (`output.txt`), how it ended (`state.json`) and, in `run`, what
`loraloom train` writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from loraloom.atomic_file import make_folder, write_file
from loraloom.confined import BadName, parts_of
from loraloom.errors import InputError
from loraloom.jobs.job import WrongStatus
from loraloom.training.toml import toml_text
from loraloom.windows import out_of_reach_of_ctrl_c

CHILD = "loraloom.cli.training_child"
NAME = re.compile(r"[\w][\w .-]{0,59}")
POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
_TAIL_BYTES = 4000
_STOPPED = 130

TrainingStatus = Literal["running", "stopped", "finished", "failed"]
Announce = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is told. base, folder: absolute paths; base_name, folder_name: as a person knows them.

    rate: of learning. prompts: what is drawn on the way, every `sample_every` steps. land_in: the folder of
    LoRAs that the result is put into.
    """

    name: str
    base: str
    base_name: str
    folder: str
    folder_name: str
    land_in: str
    trigger: str = ""
    kind: str = "lora"
    steps: int = 1000
    resolution: int = 512
    rank: int = 16
    rate: float = 1e-4
    batch: int = 1
    text_encoder: bool = False
    prompts: tuple[str, ...] = ()
    sample_every: int = 100
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """How a run stands. landed: the LoRA's name in the library, once it is there."""

    status: TrainingStatus
    started: float
    ended: float | None = None
    error: str = ""
    landed: str = ""


@dataclass(slots=True)
class Trainings:
    """The runs under a folder. announce: tells listeners ("training", {name, status, step})."""

    root: Path
    announce: Announce
    _process: asyncio.subprocess.Process | None = None
    _current: str = ""
    _task: asyncio.Task[None] | None = None
    _stopping: bool = False
    _closing: bool = False
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def folder(self, name: str) -> Path:
        """The folder of a run, which may not be there. Raises InputError for a name that is none."""
        try:
            fits = NAME.fullmatch(name) is not None and parts_of(name) == [name]
        except BadName:
            fits = False
        if not fits or name != name.strip(". "):
            raise InputError(
                f"{name[:80]!r} is no name: letters, digits, spaces, dots and dashes, at most 60"
            )
        return self.root / name

    def names(self) -> list[str]:
        """All runs, the latest first."""
        found = [p for p in self.root.iterdir() if (p / "plan.json").is_file()] if self.root.is_dir() else []
        return [p.name for p in sorted(found, key=lambda p: -self.state(p.name).started)]

    def plan(self, name: str) -> Plan:
        """Raises InputError where there is no such run."""
        try:
            said = cast("dict[str, Any]", json.loads((self.folder(name) / "plan.json").read_text("utf-8")))
            said["prompts"] = tuple(said["prompts"])
            return Plan(**said)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"there is no training {name!r}") from error

    def state(self, name: str) -> TrainingState:
        """How a run stands; one that ran when the server ended has stopped."""
        try:
            found = TrainingState(**json.loads((self.folder(name) / "state.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            found = TrainingState("failed", 0.0, None, "nothing is known of how this run ended")
        if found.status == "running" and name != self._current:
            return TrainingState("stopped", found.started, found.ended, "the server ended while it ran")
        return found

    async def start(self, plan: Plan) -> None:
        """Begin a new run. Raises InputError where the name is taken, WrongStatus while another one runs."""
        folder = self.folder(plan.name)
        async with self._starting:
            self._expect_none()
            if folder.exists():
                raise InputError(f"there is a training {plan.name!r} already; choose another name")
            write_file(folder / "plan.json", json.dumps(asdict(plan), indent=1).encode())
            write_file(folder / "settings.toml", toml_of(plan).encode())
            await self._run(plan)

    async def resume(self, name: str) -> None:
        """Go on with a run that was stopped or has failed, from its last saved state."""
        plan = self.plan(name)
        async with self._starting:
            self._expect_none()
            if self.state(name).status == "finished":
                raise WrongStatus(f"the training {name!r} has finished")
            await self._run(plan)

    async def stop(self, name: str) -> None:
        """End a run after its current step; it can go on later. Raises WrongStatus if it does not run."""
        if name != self._current or self._process is None:
            raise WrongStatus(f"the training {name!r} does not run")
        _ask_to_stop(self._process)
        self._stopping = True
        self.announce("training", {"name": name, "status": "running"})

    def stopping(self, name: str) -> bool:
        """Whether a run was told to stop and has not ended yet."""
        return self._stopping and name == self._current

    async def delete(self, name: str) -> None:
        """Forget a run and its folder. What has landed in the library stays."""
        self.plan(name)
        if name == self._current:
            raise WrongStatus(f"the training {name!r} runs; stop it first")
        await asyncio.to_thread(shutil.rmtree, self.folder(name), True)

    async def close(self) -> None:
        """End the run with the server; its state is saved, if it is quick enough."""
        process, task = self._process, self._task
        if process is None or task is None:
            return
        self._closing = True
        _ask_to_stop(process)
        try:
            async with asyncio.timeout(2.0):
                await asyncio.shield(task)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.gather(task, return_exceptions=True)

    def _expect_none(self) -> None:
        if self._current:
            raise WrongStatus(f"the training {self._current!r} runs; stop it first, or wait for its end")

    async def _run(self, plan: Plan) -> None:
        folder = self.folder(plan.name)
        begun = time.time()
        with open(folder / "output.txt", "ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", CHILD, "train", str(folder / "settings.toml"),
                "--log", str(folder / "steps.jsonl"),
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1"}, **out_of_reach_of_ctrl_c(),
            )  # fmt: skip
        self._current, self._stopping = plan.name, False
        self._write(plan.name, TrainingState("running", begun))
        self._task = asyncio.create_task(self._watch(plan, self._process, begun))

    async def _watch(self, plan: Plan, process: asyncio.subprocess.Process, begun: float) -> None:
        """Tell of steps while it runs, and note how it ended."""
        log, size = self.folder(plan.name) / "steps.jsonl", -1
        ended = asyncio.create_task(process.wait())
        while not ended.done():
            await asyncio.wait([ended], timeout=POLL_SECONDS)
            now = log.stat().st_size if log.exists() else 0
            if now != size:
                size = now
                self.announce("training", {"name": plan.name, "status": "running"})
        code = ended.result()
        status: TrainingStatus = "failed"
        error = landed = ""
        if code == 0:
            status = "finished"
            try:
                landed = await asyncio.to_thread(land, plan, self.folder(plan.name) / "run")
            except (InputError, OSError) as problem:
                error = f"the LoRA is in {self.folder(plan.name) / 'run'}, not in the library: {problem}"
        elif code == _STOPPED or self._closing:
            status = "stopped"
        else:
            error = self._last_words(plan.name, code)
        self._current, self._process = "", None
        self._write(plan.name, TrainingState(status, begun, time.time(), error, landed))
        self.announce("training", {"name": plan.name, "status": status})

    def _last_words(self, name: str, code: int) -> str:
        """What the process said last, from "error:" on where it says so."""
        with open(self.folder(name) / "output.txt", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace").strip()
        said = text.rpartition("error: ")[2] if "error: " in text else text.rpartition("\n")[2]
        return said.strip() or f"the process ended with exit code {code}"

    def _write(self, name: str, state: TrainingState) -> None:
        write_file(self.folder(name) / "state.json", json.dumps(asdict(state), indent=1).encode())


def _ask_to_stop(process: asyncio.subprocess.Process) -> None:
    """The end of its input stops the child after the current step; Windows has no signal for that."""
    if process.stdin is not None:
        process.stdin.close()


def steps_of(folder: Path, most: int = 600) -> tuple[list[list[float]], list[list[float]], dict[str, Any]]:
    """[step, loss] of at most `most` steps (means between them), [step, validation loss], the last line.

    A run that went on from an earlier state has written some steps twice; the later ones count."""
    losses: dict[int, float] = {}
    validations: dict[int, float] = {}
    last: dict[str, Any] = {}
    try:
        lines = (folder / "steps.jsonl").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            said: Any = json.loads(line)
            step, loss = int(said["step"]), float(said["loss"])
        except (ValueError, TypeError, KeyError):
            continue  # a line that is just being written
        losses[step], last = loss, said
        if "validation" in said:
            validations[step] = float(said["validation"])
    ordered = sorted((step, loss) for step, loss in losses.items() if step <= last["step"])
    stride = -(-len(ordered) // most) if ordered else 1
    points: list[list[float]] = []
    for start in range(0, len(ordered), stride):
        part = ordered[start : start + stride]
        points.append([part[-1][0], sum(loss for _, loss in part) / len(part)])
    return points, [[s, v] for s, v in sorted(validations.items()) if s <= last["step"]], last


def land(plan: Plan, run: Path) -> str:
    """Put a finished LoRA, with its last sample as its picture, into the library; its name there."""
    source, target = run / f"{plan.name}.safetensors", Path(plan.land_in)
    make_folder(target)
    free, count = target / source.name, 1
    while free.exists():
        count += 1
        free = target / f"{plan.name} {count}.safetensors"
    write_file(free, source.read_bytes())
    samples = sorted((run / "samples").glob(f"{plan.name}-*-00.png"))
    if samples:
        write_file(free.with_name(f"{free.stem}.preview.png"), samples[-1].read_bytes())
    return free.name


def toml_of(plan: Plan) -> str:
    """The settings file of a run."""
    return toml_text(
        {
            "name": plan.name,
            "output": "run",
            "model": {"checkpoint": plan.base},
            "data": [{"folder": plan.folder, "trigger": plan.trigger}],
            "adapter": {"kind": plan.kind, "rank": plan.rank, "text_encoder": plan.text_encoder},
            "optimizer": {"rate": plan.rate},
            "run": {
                "steps": plan.steps, "batch": plan.batch, "resolution": plan.resolution, "dtype": plan.dtype,
                "save_every": max(10, plan.steps // 10),
            },
            "validation": {"every": max(10, plan.steps // 20)},
            "samples": {"prompts": plan.prompts, "every": plan.sample_every},
        }
    )  # fmt: skip
