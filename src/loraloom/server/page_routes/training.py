"""Training from the page: folders of pictures, runs, their losses and samples."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from loraloom.atomic_file import write_file
from loraloom.folders import CAPTION_SUFFIXES, is_shown
from loraloom.server import decoding, paths
from loraloom.server.bodies import read_bytes
from loraloom.server.page_routes.words import TRAINING, trouble_of
from loraloom.server.pictures import PICTURE_SUFFIXES, thumbnail
from loraloom.server.state import ServerState
from loraloom.server.trainings import Plan, Trainings, TrainingStatus, steps_of

MAX_CAPTION = 100_000
_SAMPLE = re.compile(r".+-(\d{6,})-(\d\d)\.png")


class PictureFolder(BaseModel):
    """A folder in the input folder that holds pictures. captions: how many of them have one."""

    name: str
    pictures: int
    captions: int


class NewTraining(BaseModel):
    """base: a checkpoint. folder: of pictures, in the input folder. trigger: put before every caption."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str
    base: str
    folder: str
    trigger: str = Field("", max_length=200)
    kind: Literal["lora", "locon", "dora", "loha", "lokr"] = "lora"
    steps: int = Field(1000, ge=1, le=1_000_000)
    resolution: int = Field(512, ge=16, le=8192)
    rank: int = Field(16, ge=1, le=1024)
    rate: float = Field(1e-4, gt=0, le=10)
    batch: int = Field(1, ge=1, le=256)
    text_encoder: bool = False
    prompts: list[Annotated[str, Field(max_length=2000)]] = Field(
        default_factory=lambda: list[str](), max_length=8
    )
    sample_every: int = Field(100, ge=1, le=1_000_000)


class Sample(BaseModel):
    file: str
    step: int
    index: int


class TrainingView(BaseModel):
    """losses, validations: [step, loss]. landed: the LoRA's name in the library, once it is there."""

    name: str
    status: TrainingStatus
    stopping: bool = Field(description="It was told to stop, and does so after its current step.")
    base: str
    folder: str
    trigger: str
    kind: str
    rank: int
    prompts: list[str]
    step: int
    steps: int
    seconds: float | None = Field(description="Of the last step.")
    losses: list[list[float]]
    validations: list[list[float]]
    samples: list[Sample]
    started: float
    ended: float | None
    what: str = Field(description="What went wrong, if anything.")
    advice: str
    landed: str


def add(api: FastAPI, state: ServerState) -> None:
    _add_folders(api, state)
    _add_runs(api, state)


def _add_folders(api: FastAPI, state: ServerState) -> None:
    root = state.settings.input_dir

    @api.get("/trainings/folders")
    async def folders() -> list[PictureFolder]:
        """The folders of pictures that a training may start from."""
        return await asyncio.to_thread(folders_in, root)

    @api.put("/trainings/folders/{folder}", responses={400: {}, 403: {}, 413: {}},
             openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {
                 "schema": {"type": "string"}}}}})  # fmt: skip
    async def put_file(request: Request, folder: str, name: str) -> PictureFolder:
        """Put one picture, or the text file with its caption, into a folder of pictures; `name` may say one
        in it."""
        place = paths.inside(root, f"{folder}/{name}")
        suffix = place.suffix.lower()
        if place.parent == paths.inside(root, "") or suffix not in PICTURE_SUFFIXES | CAPTION_SUFFIXES:
            raise HTTPException(400, "expected a picture or its caption (.txt), in one folder")
        limit = MAX_CAPTION if suffix in CAPTION_SUFFIXES else state.settings.max_upload
        content = await read_bytes(request, limit)
        if suffix in CAPTION_SUFFIXES:
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise HTTPException(400, f"{name} is not UTF-8 text") from error
        else:
            await decoding.in_turn(decoding.check, io.BytesIO(content), state.settings.max_pixels)
        await asyncio.to_thread(write_file, place, content)
        return counted(paths.inside(root, folder))


def _add_runs(api: FastAPI, state: ServerState) -> None:
    trainings = state.trainings

    @api.get("/trainings")
    async def all_runs() -> list[TrainingView]:
        """All runs, the latest first."""
        return await asyncio.to_thread(lambda: [view(trainings, name, 200) for name in trainings.names()])

    @api.post("/trainings", status_code=201, responses={400: {}, 409: {}})
    async def start(wanted: NewTraining) -> TrainingView:
        """Start a training. It runs beside the queue, as a process of its own."""
        await trainings.start(plan_of(wanted, state))
        return view(trainings, wanted.name)

    @api.get("/trainings/{name}", responses={400: {}, 404: {}})
    async def one(name: str) -> TrainingView:
        """A run as it stands, with its losses and samples."""
        return await asyncio.to_thread(view, trainings, name)

    @api.post("/trainings/{name}/stop", status_code=202, responses={400: {}, 404: {}, 409: {}})
    async def stop(name: str) -> None:
        """Stop after the current step; the run can go on later."""
        await trainings.stop(name)

    @api.post("/trainings/{name}/resume", responses={400: {}, 404: {}, 409: {}})
    async def resume(name: str) -> TrainingView:
        """Go on from the last saved state."""
        await trainings.resume(name)
        return view(trainings, name)

    @api.delete("/trainings/{name}", status_code=204, responses={400: {}, 404: {}, 409: {}})
    async def delete(name: str) -> None:
        """Forget a run, its states and samples. What has landed in the library stays."""
        await trainings.delete(name)

    @api.get("/trainings/{name}/samples/{file}", responses={400: {}, 403: {}, 404: {}})
    async def sample(
        request: Request, name: str, file: str, width: Annotated[int, Query(ge=16, le=2048)] = 512
    ) -> Response:
        """A picture that was drawn on the way."""
        path = paths.inside(trainings.folder(name) / "run" / "samples", file)
        return await thumbnail(request, path, width, state.settings.max_pixels)


def folders_in(root: Path) -> list[PictureFolder]:
    found = [counted(p) for p in root.iterdir() if is_shown(p.name) and p.is_dir()] if root.is_dir() else []
    return sorted((f for f in found if f.pictures), key=lambda f: f.name.lower())


def counted(folder: Path) -> PictureFolder:
    files = [p for p in folder.rglob("*") if p.is_file()]
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES]
    captions = {p.with_suffix("") for p in files if p.suffix.lower() in CAPTION_SUFFIXES}
    with_caption = sum(p.with_suffix("") in captions for p in pictures)
    return PictureFolder(name=folder.name, pictures=len(pictures), captions=with_caption)


def plan_of(wanted: NewTraining, state: ServerState) -> Plan:
    """Names resolved to files. Raises InputError, HTTPException for what cannot be used."""
    folders = state.files.folders
    paths.parts_of(wanted.base)
    base = folders.resolve("checkpoints", wanted.base)
    place = paths.inside(state.settings.input_dir, wanted.folder)
    if (
        place == paths.inside(state.settings.input_dir, "")
        or not place.is_dir()
        or not counted(place).pictures
    ):
        raise HTTPException(400, f"the folder {wanted.folder[:80]!r} holds no pictures")
    lora_folders = folders.directories("loras") or tuple(root / "loras" for root in folders.roots[:1])
    if not lora_folders:
        raise HTTPException(400, "there is no folder for LoRAs; name one with --models")
    said = wanted.model_dump()
    said.update(
        base=str(base.absolute()), base_name=wanted.base, folder=str(place), folder_name=wanted.folder,
        land_in=str(lora_folders[0].absolute()), prompts=tuple(p for p in wanted.prompts if p.strip()),
        dtype="bf16" if state.dispatcher.worker_info.get("devices") else "fp32",
    )  # fmt: skip
    return Plan(**said)


def view(trainings: Trainings, name: str, points: int = 600) -> TrainingView:
    plan, now, folder = trainings.plan(name), trainings.state(name), trainings.folder(name)
    losses, validations, last = steps_of(folder, points)
    error: dict[str, Any] | None = {"type": TRAINING, "message": now.error} if now.error else None
    trouble = trouble_of(error)
    return TrainingView(
        name=name, status=now.status, stopping=trainings.stopping(name), base=plan.base_name,
        folder=plan.folder_name, trigger=plan.trigger, kind=plan.kind, rank=plan.rank,
        prompts=list(plan.prompts), step=int(last.get("step", 0)),
        steps=plan.steps, seconds=last.get("seconds"), losses=losses, validations=validations,
        samples=samples_in(folder / "run" / "samples"), started=now.started, ended=now.ended,
        what=trouble.what if trouble else "", advice=trouble.advice if trouble else "", landed=now.landed,
    )  # fmt: skip


def samples_in(folder: Path) -> list[Sample]:
    found = [(p.name, m) for p in folder.glob("*.png") if (m := _SAMPLE.fullmatch(p.name))]
    samples = [Sample(file=name, step=int(m[1]), index=int(m[2])) for name, m in found]
    return sorted(samples, key=lambda s: (s.step, s.index))
