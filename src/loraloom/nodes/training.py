"""Training as a node, so that a server's queue and its workers can train as they draw."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch

from loraloom.confined import parts_of, resolved
from loraloom.engine.node import Files, NodeResult, NodeRun, Optional_, Text, node
from loraloom.errors import Cancelled, InputError
from loraloom.file_lock import try_lock
from loraloom.folders import PICTURE_FOLDERS, ModelFolders
from loraloom.runtime.output_files import SavedFile
from loraloom.runtime.services import Services, services
from loraloom.training.settings import Settings
from loraloom.training.toml import parse
from loraloom.workflow.graph import JSON

NONE = "none"
DIFFUSERS = ".diffusers.safetensors"
_OWN = ("name", "output", "model", "cache")
"""Settings that the node's inputs say, or the machine that trains."""
_LOOK_SECONDS = 0.5
OptionalEncoder = Annotated[str, Files("text_encoders", extra=(NONE,)), Optional_()]


@node(
    "LoraloomTrainLora",
    category="training",
    display_name="Train a LoRA",
    output_node=True,
    python_module="loraloom",
    alone=True,
    is_changed=lambda **_: float("nan"),  # the pictures may have been replaced
)
def train_lora(
    base: Annotated[str, Files("checkpoints", "diffusion_models")],
    pictures: Annotated[str, Files(PICTURE_FOLDERS)],
    name: Annotated[str, Text()] = "lora",
    settings: Annotated[str, Text(multiline=True)] = "",
    text_encoder: OptionalEncoder = NONE,
    text_encoder2: OptionalEncoder = NONE,
    text_encoder3: OptionalEncoder = NONE,
    text_kind: Annotated[str, Text(), Optional_()] = "",
    vae: Annotated[str, Files("vae", extra=(NONE,)), Optional_()] = NONE,
    *,
    run: NodeRun,
) -> NodeResult:
    """Train a LoRA on a folder of pictures in the input folder; one that was stopped goes on where it was.

    settings: a settings file of `loraloom train`, but for `name`, `output` and `model`; folders of `[[data]]`
    are those in `pictures`, and `adapter.start` is a LoRA of the model folders."""
    found = services(run)
    encoders = [one for one in (text_encoder, text_encoder2, text_encoder3) if one != NONE]
    model: dict[str, object] = {
        "checkpoint": str(_base(found, base)),
        "text_encoders": [str(found.folders.resolve("text_encoders", one)) for one in encoders],
        "text_kind": text_kind,
    }
    if vae != NONE:
        model["autoencoder"] = str(found.folders.resolve("vae", vae))
    stated = _stated(settings, pictures, found.folders)
    asked = json.dumps([name, base, pictures, encoders, text_kind, vae, stated], sort_keys=True, default=str)
    place = found.training / hashlib.sha256(asked.encode()).hexdigest()[:32]
    if isinstance(told := stated.setdefault("run", {}), dict):
        told.setdefault("device", str(found.memory.device))
    more = {
        "name": name,
        "output": str(place / "run"),
        "cache": str(found.training / "cache"),
        "model": model,
    }
    wanted = parse({**stated, **more}, Settings, Path())
    with _alone(place, run):
        files = _trained(wanted, found, run)
        shutil.rmtree(place / "run", ignore_errors=True)
    return NodeResult(ui={"files": [*files]})


def _base(found: Services, name: str) -> Path:
    path = found.folders.find("checkpoints", name)
    return found.folders.resolve("diffusion_models", name) if path is None else path


def _stated(text: str, pictures: str, folders: ModelFolders) -> dict[str, Any]:
    """The settings as TOML, which name no file but folders in `pictures` and a LoRA. Raises InputError."""
    place = folders.resolve(PICTURE_FOLDERS, pictures)
    try:
        stated: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"settings are not TOML: {error}") from error
    for key in _OWN:
        if key in stated:
            raise InputError(f"settings.{key} is for an input of this node, or for its machine; leave it out")
    data = stated.setdefault("data", [{"folder": "."}])
    for table in cast("list[Any]", data) if isinstance(data, list) else []:
        if isinstance(table, dict):
            known = cast("dict[str, Any]", table)
            known["folder"] = str(resolved(place, parts_of(str(known.get("folder", ".")))))
    if isinstance(adapter := stated.get("adapter"), dict) and "start" in adapter:
        adapter["start"] = str(folders.resolve("loras", str(adapter["start"])))
    return stated


def _trained(settings: Settings, found: Services, run: NodeRun) -> list[JSON]:
    """Train, and put what came of it into the output folder; as ComfyUI names results."""
    from loraloom.training.loop import StepReport
    from loraloom.training.session import Session
    from loraloom.training.train import RESULT, train

    def ready(session: Session, step: int) -> None:
        for remark in session.remarks:
            run.warn(remark)
        run.progress(step, settings.run.steps)

    def stepped(report: StepReport) -> None:
        try:
            run.progress(report.step, report.steps)
        except Cancelled as error:
            raise KeyboardInterrupt from error

    found.memory.release()  # the device's memory is the training's
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trained = train(settings, stepped, ready)
    except KeyboardInterrupt:
        raise Cancelled("the training was stopped; queued again it goes on") from None
    files = [trained.lora, trained.diffusers, trained.best, trained.curve, settings.output / RESULT]
    files += sorted((settings.output / "samples").glob("*.png"))
    return [_saved(path, settings.name, found).as_ui() for path in files if path is not None]


def _saved(path: Path, name: str, found: Services) -> SavedFile:
    ending = DIFFUSERS if path.name.endswith(DIFFUSERS) else path.suffix
    return found.output.save(f"training/{name}/{path.name.removesuffix(ending)}", ending, path.read_bytes())


@contextmanager
def _alone(place: Path, run: NodeRun) -> Generator[None]:
    """One at a time for a folder, also among processes; waiting can be stopped."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "ab") as file:
        while not try_lock(file):
            run.check_cancelled()
            time.sleep(_LOOK_SECONDS)
        yield
