"""Drawing without nodes, and any workflow as a form."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from loraloom.atomic_file import write_file
from loraloom.demo.files import MODELS
from loraloom.errors import InputError
from loraloom.server import prompts
from loraloom.server.bodies import read_bytes, read_object
from loraloom.server.library_process import LibraryGone
from loraloom.server.page_routes.cards import DRAWN, Card, card_of
from loraloom.server.state import ServerState
from loraloom.workflow.drawing import DrawSettings, graph_of, settings_of
from loraloom.workflow.form import form_of
from loraloom.workflow.graph import JSON
from loraloom.workflow.implemented import known_schemas
from loraloom.workflow.report import Problem
from loraloom.workflow.sources import Found, workflows_of

_SETTINGS: TypeAdapter[DrawSettings] = TypeAdapter(DrawSettings)
MAX_FORMS = 40


class FormProblem(BaseModel):
    """node, input: where, as far as it has a place. url: where a missing file comes from, if it is said."""

    node: str | None
    input: str | None = None
    message: str
    url: str = ""


class WorkflowForm(BaseModel):
    """One workflow of a file. prompt: in API format, ready for POST /v1/jobs once its values are set.

    sections: the values by node. settings: those of a drawing, where it amounts to one. damage: why it
    cannot be read, if so.
    """

    index: int
    title: str
    prompt: dict[str, Any] = Field(default_factory=dict)
    sections: list[dict[str, Any]] = Field(default_factory=lambda: list[dict[str, Any]]())
    settings: dict[str, Any] | None = None
    problems: list[FormProblem] = Field(default_factory=lambda: list[FormProblem]())
    damage: str | None = None


class WorkflowForms(BaseModel):
    workflows: list[WorkflowForm]


class Base(BaseModel):
    """kind: its folder. family, title: what it is, where its header says so.

    size: the side of the pictures that it was trained on, 0 where that is not said. channels: of its latents.
    """

    name: str
    kind: str
    family: str = ""
    title: str = ""
    size: int = 0
    channels: int = 4
    text_kind: str = ""
    encoders: list[str] = Field(default_factory=lambda: list[str](), description="Its text encoders' kinds.")


class Choices(BaseModel):
    bases: list[Base]
    loras: list[str]
    vaes: list[str]
    text_encoders: list[str]
    text_kinds: list[str]
    samplers: list[str]
    schedulers: list[str]
    folder: str = Field("", description="The models folder, where files are looked for first.")


def settings_from(body: dict[str, JSON]) -> DrawSettings:
    """The settings in a request's body; HTTPException 400 that says what is wrong."""
    known = [field.name for field in fields(DrawSettings)]
    if unknown := [name for name in body if name not in known]:
        raise HTTPException(400, f"{unknown[0][:80]!r} is no setting of a drawing; known: {', '.join(known)}")
    try:
        return _SETTINGS.validate_python(body)
    except ValidationError as error:
        raise HTTPException(400, error.errors(include_url=False, include_input=False)) from error


def _in_place(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what it refers to where it is named: an OpenAPI document knows no `$defs`."""
    parts = schema.pop("$defs", {})

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            said = cast("dict[str, Any]", value)
            name = str(said.get("$ref", "")).rpartition("/")[2]
            return replaced(parts[name]) if name else {key: replaced(inner) for key, inner in said.items()}
        return [replaced(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value

    return replaced(schema)


def add(api: FastAPI, state: ServerState) -> None:
    limit = state.settings.max_json

    @api.post("/draw", status_code=201, responses={400: {}, 413: {}, 429: {}},
              openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
                  "schema": _in_place(_SETTINGS.json_schema())}}}})  # fmt: skip
    async def draw(request: Request) -> Card:
        """Queue a drawing by its settings."""
        settings = settings_from(await read_object(request, limit))
        asked: dict[str, Any] = {
            "prompt": graph_of(settings).to_api(),
            "extra_data": {"preview_method": "auto", DRAWN: asdict(settings)},
        }
        try:
            accepted = await prompts.accept(asked, state)
        except prompts.BadPrompt as error:
            raise HTTPException(400, error.body) from error
        return card_of(await state.dispatcher.submit(accepted.request))

    @api.get("/draw/choices")
    async def choices() -> Choices:
        """What a drawing may be made of."""
        found = await asyncio.to_thread(choices_of, state)
        known = await described(state, found.bases)
        return found.model_copy(update={"bases": known})

    @api.post("/draw/demo", status_code=204, responses={400: {}, 507: {}})
    async def demo() -> None:
        """Put the small model that comes with Loraloom, and its LoRAs, into the models folder."""
        roots = state.files.folders.roots
        if not roots:
            raise HTTPException(400, "this server has no models folder; start it with --models FOLDER")
        await asyncio.to_thread(_put_demo, roots[0])
        state.files.forget()

    @api.post("/workflows", responses={400: {}, 413: {}},
              openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {
                  "schema": {"type": "string"}}}}})  # fmt: skip
    async def read_workflows(request: Request, name: str = "the file") -> WorkflowForms:
        """The workflows in a file (JSON, a picture that carries one, a page), each as a form."""
        content = await read_bytes(request, state.settings.max_upload)
        return await asyncio.to_thread(forms_in, content, name[:200], state)


def choices_of(state: ServerState) -> Choices:
    files = state.files.anew()
    return Choices(
        bases=[Base(name=n, kind=k) for k in ("checkpoints", "diffusion_models") for n in files(k)],
        loras=list(files("loras")),
        vaes=list(files("vae")),
        text_encoders=list(files("text_encoders")),
        text_kinds=_fixed(state, "DualCLIPLoader", "type"),
        samplers=_fixed(state, "KSampler", "sampler_name"),
        schedulers=_fixed(state, "KSampler", "scheduler"),
        folder=str(next((root.absolute() for root in state.files.folders.roots), "")),
    )


async def described(state: ServerState, bases: list[Base]) -> list[Base]:
    """The bases with what their headers say; as they are where those cannot be asked."""
    paths = [state.files.folders.find(base.kind, base.name) for base in bases]
    files = [(base, str(path)) for base, path in zip(bases, paths, strict=True) if path is not None]
    try:
        facts = cast("list[dict[str, Any]]", await state.library.ask("bases", paths=[p for _, p in files]))
    except LibraryGone:
        return bases
    return [base.model_copy(update=said) for (base, _), said in zip(files, facts, strict=True)]


def _put_demo(folder: Path) -> None:
    """Files that are there already stay. Raises FileWriteError."""
    for file in sorted(MODELS.rglob("*.safetensors")):
        place = folder / file.relative_to(MODELS)
        if not place.exists():
            write_file(place, file.read_bytes())


def _fixed(state: ServerState, class_type: str, name: str) -> list[str]:
    """The fixed choices of an input."""
    schema = state.schemas.get(class_type)
    entry = schema.input(name) if schema else None
    return [str(choice) for choice in (entry.choices if entry else ())]


def forms_in(content: bytes, name: str, state: ServerState) -> WorkflowForms:
    """Raises InputError for a file without workflows."""
    found = workflows_of(content, name)[:MAX_FORMS]
    return WorkflowForms(workflows=[_form(one, state) for one in found])


def _form(found: Found, state: ServerState) -> WorkflowForm:
    schemas = {**known_schemas(), **state.schemas}
    try:
        graph = found.graph(schemas)
        report = state.validate(graph)
        sections = form_of(report.graph, state.schemas, state.files.anew())
    except InputError as error:
        return WorkflowForm(index=found.index, title=found.title, damage=str(error))
    settings = settings_of(report.graph)
    return WorkflowForm(
        index=found.index,
        title=found.title,
        prompt=cast("dict[str, Any]", report.graph.to_api()),
        sections=[asdict(section) for section in sections],
        settings=asdict(settings) if settings else None,
        problems=[_problem(problem) for problem in report.problems],
    )


def _problem(problem: Problem) -> FormProblem:
    """A problem in a person's words: those of a missing file name its folder and what comes close."""
    name = problem.extra_info.get("input_name")
    found = FormProblem(
        node=problem.node_id, input=name if isinstance(name, str) else None, message=problem.line()
    )
    lost = problem.missing
    if lost is None:
        return found
    close = f" Its name is most like {' and '.join(lost.nearest[:2])}." if lost.nearest else ""
    said = f"“{lost.name}” is not in the folder {lost.folder}. Put it there, or choose another below.{close}"
    known = lost.url if lost.url and lost.url.startswith(("https://", "http://")) else ""
    return found.model_copy(update={"message": said, "url": known})
