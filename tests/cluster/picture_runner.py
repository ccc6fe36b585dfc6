"""A worker's runner that sleeps instead of computing, together where jobs are run together, and writes real
pictures."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import psutil
from PIL import Image

from loraloom.engine.cache import Cache
from loraloom.engine.events import Event
from loraloom.engine.markers import Files, Number
from loraloom.engine.node import NodeResult, NodeRun, NodeType, Optional_, node, node_types
from loraloom.engine.run import run
from loraloom.engine.together import Inside, Start, Told, run_together
from loraloom.jobs.job import Request
from loraloom.runtime.output_files import OutputFolder
from loraloom.turns import Turns
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.graph import JSON


@node("SleepAndDraw", category="test", output_node=True)
def sleep_and_draw(
    value: Annotated[int, Number(control_after_generate=True)],
    seconds: Annotated[float, Optional_()] = 0.1,
    name: Annotated[str, Optional_()] = "job",
    fate: Annotated[str, Optional_()] = "",
    *,
    run: NodeRun,
) -> NodeResult:
    """It also says how many it slept with. fate: "crash" takes the process down, "fail" is an error."""
    steps, slept_with = max(1, int(seconds / 0.05)), 1
    for step in range(steps):
        run.progress(step + 1, steps)
        slept_with = max(slept_with, _slept(seconds / steps))
    if fate == "crash":
        psutil.Process().kill()
    if fate == "fail":
        raise RuntimeError("it was to fail")
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (value % 256, value // 256 % 256, 0)).save(picture, "PNG")
    folders = cast("dict[str, OutputFolder]", run.services)
    saved = folders["output"].save(name, ".png", picture.getvalue())
    shown = folders["temp"].save("shown", ".png", picture.getvalue())
    return NodeResult(ui={"images": [saved.as_ui(), shown.as_ui()], "text": [str(slept_with)]})


_turns: list[Turns[float, int]] = []


def _slept(seconds: float) -> int:
    """Sleep, together with all that run together; how many that were."""
    if _turns and _turns[-1].is_here():
        return _turns[-1].ask(seconds)
    time.sleep(seconds)
    return 1


def _sleep(asked: Mapping[int, float]) -> dict[int, int]:
    time.sleep(max(asked.values()))
    return dict.fromkeys(asked, len(asked))


@node("ReadFile", category="test", output_node=True)
def read_file(lora_name: Annotated[str, Files("loras")], *, run: NodeRun) -> NodeResult:
    """The size and place of a LoRA that must be on the worker's machine."""
    folders = cast("dict[str, Any]", run.services)
    for root in folders["models"]:
        path = Path(root) / "loras" / lora_name
        if path.exists():
            return NodeResult(ui={"text": [str(path.stat().st_size), str(path)]})
    raise FileNotFoundError(lora_name)


NODES: dict[str, NodeType] = {t.name: t for f in (sleep_and_draw, read_file) for t in node_types(f)}


class PictureRunner:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._services = {k: OutputFolder(Path(settings[f"{k}_dir"]), k) for k in ("output", "temp")}
        self._models = settings.get("models") or []

    def run(self, request: Request, cancel: threading.Event, inside: Inside = nullcontext) -> Iterator[Event]:
        return run(
            parse_api(dict(request.prompt)), NODES, targets=request.targets, cache=Cache("none"),
            services={**self._services, "models": self._models}, cancel=cancel, inside=inside,
        )  # fmt: skip

    def run_together(
        self, requests: Sequence[Request], cancels: Sequence[threading.Event], rows: int
    ) -> Iterator[Told]:
        _turns.append(Turns(len(requests), _sleep))
        starts: list[Start] = [
            partial(self.run, request, cancel) for request, cancel in zip(requests, cancels, strict=True)
        ]
        return run_together(_turns[-1], starts, [cancel.is_set for cancel in cancels], nullcontext)

    def describe(self) -> dict[str, JSON]:
        return {"devices": [], "pid": os.getpid()}

    def declared(self) -> JSON:
        return None

    def check(self, request: Request) -> list[JSON]:
        return []

    def free(self, models: bool, results: bool) -> None:
        pass


def make(settings: Mapping[str, Any]) -> PictureRunner:
    return PictureRunner(settings)


def prompt(value: int, seconds: float = 0.1, name: str = "job", fate: str = "") -> dict[str, JSON]:
    """A job of one picture, coloured by its value."""
    inputs: dict[str, JSON] = {"value": value, "seconds": seconds, "name": name, "fate": fate}
    return {"1": {"class_type": "SleepAndDraw", "inputs": inputs}}
