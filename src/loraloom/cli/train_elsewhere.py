"""Trainings as jobs of a server: pictures go there, LoRAs come back into the folders of the runs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from blake3 import blake3

from loraloom.atomic_file import write_file
from loraloom.cli.server_jobs import ServerJobs, expect_completed
from loraloom.errors import InputError, LoraloomError
from loraloom.folders import IMAGE_SUFFIXES, ModelFolders
from loraloom.training.settings import Settings
from loraloom.training.sweep import Combination
from loraloom.training.toml import toml_text
from loraloom.workflow.graph import JSON

if TYPE_CHECKING:
    from loraloom.training.train import Trained

NODE = "LoraloomTrainLora"
_ENCODERS = ("text_encoder", "text_encoder2", "text_encoder3")
_OWN = ("name", "output", "model", "cache")
_COUNTER = re.compile(r"_\d{5}_(?=\.)")
_SAMPLE = re.compile(r"-\d{6,}-\d\d\.png$")


def trained_elsewhere(
    server: ServerJobs, runs: Sequence[Combination], cancel: threading.Event
) -> Iterator[tuple[Combination, Trained | LoraloomError]]:
    """What runs gave, in order, or failed with; those that are done already are not queued.

    Raises InputError for what the server refuses, before anything is queued where that can be known."""
    from loraloom.training.train import finished

    known = {run.title: finished(run.settings) for run in runs}
    left = [run for run in runs if known[run.title] is None]
    sent: dict[tuple[Path, ...], str] = {}
    prompts: list[dict[str, JSON]] = []
    for run in left:
        folders = tuple(one.folder for one in run.settings.data)
        if folders not in sent:
            sent[folders] = send_pictures(server, run.settings, cancel)
        prompts.append(workflow_of(server, run.settings, sent[folders], cancel))
    jobs = server.ended(prompts, cancel)
    for run in runs:
        gave = known[run.title]
        if gave is None:
            job = next(jobs)
            try:
                expect_completed(job)
            except LoraloomError as error:
                yield run, error
                continue
            gave = _fetched(server, job, run.settings, cancel)
        yield run, gave


def send_pictures(server: ServerJobs, settings: Settings, cancel: threading.Event) -> str:
    """Have the run's pictures and captions in the server's input folder; the name of their folder there,
    which says what they hold."""
    files = [
        (f"{number}/{of.folder.name}/{path.relative_to(of.folder).as_posix()}", path.read_bytes())
        for number, of in enumerate(settings.data)
        for path in _training_files(of.folder)
    ]
    digest = blake3()
    for name, content in files:
        digest.update(f"{name} {len(content)} ".encode() + content)
    first = "".join(c if c.isalnum() or c in "-_" else "_" for c in settings.data[0].folder.name)[:40]
    folder = f"{first}-{digest.hexdigest()[:12]}"
    there = {one["name"]: one["pictures"] for one in server.asked("/v1/trainings/folders", cancel)}
    pictures = sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name, _ in files)
    if there.get(folder) != pictures:
        # Captions go first: where all pictures are, everything is.
        for name, content in sorted(files, key=lambda file: Path(file[0]).suffix.lower() in IMAGE_SUFFIXES):
            server.fetched(f"/v1/trainings/folders/{quote(folder)}?name={quote(name)}", cancel, content)
    return folder


def _training_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"the dataset folder {folder} does not exist")
    names = ModelFolders([], input_dir=folder.parent).training_files(folder.name)
    return [folder.parent / name for name in names]


def workflow_of(
    server: ServerJobs, settings: Settings, pictures: str, cancel: threading.Event
) -> dict[str, JSON]:
    """The job of a run, in API format; its model files are the server's of the same names."""

    def named(path: Path, *kinds: str) -> str:
        names = [name for kind in kinds for name in server.asked(f"/models/{kind}", cancel)]
        found = [name for name in names if PurePosixPath(name).name == path.name]
        if not found:
            raise InputError(f"{server.url} has no {path.name} among its {' or '.join(kinds)}; put it there")
        return found[0]

    model = settings.model
    if len(model.text_encoders) > len(_ENCODERS):
        raise InputError(f"a server trains with at most {len(_ENCODERS)} text encoders")
    inputs: dict[str, JSON] = {
        "base": named(model.checkpoint, "checkpoints", "diffusion_models"),
        "pictures": pictures,
        "name": settings.name,
        "settings": _told(settings, named(start, "loras") if (start := settings.adapter.start) else None),
        "text_kind": model.text_kind,
    }
    for name, path in zip(_ENCODERS, model.text_encoders, strict=False):
        inputs[name] = named(path, "text_encoders")
    if model.autoencoder is not None:
        inputs["vae"] = named(model.autoencoder, "vae")
    return {"1": {"class_type": NODE, "inputs": inputs}}


def _told(settings: Settings, start: str | None) -> str:
    """All that the node's inputs do not say. On which device it trains is the worker's affair. start: the
    server's name of the LoRA to go on from."""
    told: dict[str, Any] = {k: v for k, v in asdict(settings).items() if k not in _OWN}
    del told["run"]["device"]
    told["adapter"]["start"] = start
    for number, (table, of) in enumerate(zip(told["data"], settings.data, strict=True)):
        table["folder"] = f"{number}/{of.folder.name}"
    return toml_text(told)


def _fetched(
    server: ServerJobs, job: Mapping[str, Any], settings: Settings, cancel: threading.Event
) -> Trained:
    """Put what a job made into the folder of its run, under the names that a run here gives."""
    from loraloom.training.state import settings_digest
    from loraloom.training.train import RESULT, finished

    result: dict[str, Any] = {}
    for file in job["outputs"]:
        name, content = _COUNTER.sub("", file["filename"], count=1), server.fetched(file["url"], cancel)
        if name == RESULT:
            result = json.loads(content)
            continue
        write_file(settings.output / ("samples" if _SAMPLE.search(name) else "") / name, content)
    # Last: it says that the run is done, and with which settings, whose paths are those of this machine.
    result["settings"] = settings_digest(settings)
    write_file(settings.output / RESULT, json.dumps(result, indent=1).encode())
    found = finished(settings)
    if found is None:
        raise LoraloomError(f"job {job['id']} left no {settings.name}.safetensors")
    return found
