"""A whole run: from settings to LoRA files, with samples, curves and saved states on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from loraloom.training.export import diffusers_tensors, kohya_tensors, metadata, write_lora
from loraloom.training.kind import kinds
from loraloom.training.loop import Loop, StepReport
from loraloom.training.report import draw_losses, open_writer, write_scalars
from loraloom.training.samples import draw_samples
from loraloom.training.session import Session, open_session
from loraloom.training.settings import Settings
from loraloom.training.state import settings_digest
from loraloom.training.storage import read_json, write_json
from loraloom.weights.capacity import clear_about_memory

RESULT = "result.json"
_SMALLER = "set run.checkpointing, or make run.batch or run.resolution smaller"
_LATEST = 10
"""The loss at the end is the mean over the last of so many parts of the run: single steps scatter."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run wrote. lora: kohya's dialect; diffusers: where the kind has names there; best: the adapter
    with the lowest validation loss.

    loss: the mean of the last tenth of the steps; validation: the lowest, None where none was measured."""

    lora: Path
    diffusers: Path | None
    best: Path | None
    curve: Path
    steps: int
    loss: float
    validation: float | None


def train(
    settings: Settings,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_ready: Callable[[Session, int], None] = lambda session, step: None,
) -> Trained:
    """Run to the end, from the last saved state where there is one.

    on_ready: told of the session, and of the step it goes on from. on_step: after each step; it may raise
    to stop the run, which then goes on later from the last saved state; KeyboardInterrupt saves the present
    one first. Raises InputError for settings or data that cannot be used, LoraloomError where the loss is
    not finite, OutOfMemory where the device has too little memory."""
    with clear_about_memory("this training", _SMALLER):
        return _run(settings, on_step, on_ready)


def _run(
    settings: Settings,
    on_step: Callable[[StepReport], None],
    on_ready: Callable[[Session, int], None],
) -> Trained:
    session = open_session(settings)
    loop = Loop(session)
    began = _began(settings.output)
    on_ready(session, loop.position.step)
    writer = open_writer(settings.output / "tensorboard")
    best = settings.output / f"{settings.name}-best.safetensors"
    for report in loop.steps():
        if writer is not None:
            write_scalars(writer, report)
        if report.is_best:
            _write(session, loop, best, began)
        draw_samples(session, report.step)
        if report.is_saved:
            draw_losses(settings.output / "loss.png", loop.position)
        try:
            on_step(report)
        except KeyboardInterrupt:
            if not report.is_saved:
                loop.save()
            raise
    if writer is not None:
        writer.close()
    _write(session, loop, settings.output / f"{settings.name}.safetensors", began)
    _write_diffusers(session, loop, began)
    losses, validations = loop.position.losses, loop.position.validations
    latest = losses[-max(1, len(losses) // _LATEST) :]
    result = {
        "settings": settings_digest(settings),
        "steps": loop.position.step,
        "loss": sum(latest) / len(latest),
        "validation": loop.position.best if validations else None,
    }
    write_json(settings.output / RESULT, result)
    return _trained(settings, result)


def finished(settings: Settings) -> Trained | None:
    """What a run with these settings gave, if it is there already."""
    if not (settings.output / RESULT).is_file():
        return None
    result = read_json(settings.output / RESULT)
    if result.get("settings") != settings_digest(settings):
        return None
    found = _trained(settings, result)
    return found if found.lora.is_file() else None


def _trained(settings: Settings, result: Mapping[str, Any]) -> Trained:
    def there(name: str) -> Path | None:
        path = settings.output / name
        return path if path.exists() else None

    return Trained(
        settings.output / f"{settings.name}.safetensors",
        there(_diffusers_name(settings)),
        there(f"{settings.name}-best.safetensors"),
        settings.output / "loss.png",
        int(result["steps"]),
        float(result["loss"]),
        result["validation"],
    )


def _began(output: Path) -> str:
    """When the run began: told once, so that a resumed run writes the same header."""
    path = output / "run.json"
    if not path.exists():
        write_json(path, {"began": datetime.now(UTC).isoformat(timespec="seconds")})
    return str(read_json(path).get("began", ""))


def _facts(session: Session, loop: Loop, began: str) -> dict[str, str]:
    step = loop.position.step
    accumulated = step * session.settings.run.accumulate
    return {
        "ss_training_started_at": str(datetime.fromisoformat(began).timestamp()),
        "modelspec.date": began.partition("+")[0],
        "ss_steps": str(step),
        "ss_epoch": str(-(-accumulated // session.plan.batches_per_epoch)),
        "ss_num_batches_per_epoch": str(session.plan.batches_per_epoch),
        "ss_num_validation_images": str(len(session.split.validation)),
        "loraloom.validations": json.dumps(loop.position.validations),
    }


def _write(session: Session, loop: Loop, path: Path, began: str) -> None:
    header = metadata(session.settings, session.family, session.split.training, _facts(session, loop, began))
    write_lora(path, kohya_tensors(session.adapters, session.family), header, torch.float16)


def _diffusers_name(settings: Settings) -> str:
    return f"{settings.name}.diffusers.safetensors"


def _write_diffusers(session: Session, loop: Loop, began: str) -> None:
    if not kinds()[session.settings.adapter.kind].in_diffusers:
        return
    path = session.settings.output / _diffusers_name(session.settings)
    header = metadata(session.settings, session.family, session.split.training, _facts(session, loop, began))
    header.pop("ss_network_alpha", None)  # multiplied into the factors
    write_lora(path, diffusers_tensors(session.adapters, session.family), header, torch.float16)
