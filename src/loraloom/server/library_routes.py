"""ComfyUI's routes about what there is: node classes, models, features, the machine."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loraloom.folders import INPUT_KINDS
from loraloom.server import paths
from loraloom.server.answers import Answer
from loraloom.server.file_routes import internal_files
from loraloom.server.hub import FEATURES
from loraloom.server.state import ServerState, state_of
from loraloom.workflow.graph import JSON
from loraloom.workflow.object_info import object_info

# What frontends and clients take us for: the version whose behaviour is matched.
COMFYUI_VERSION = "0.3.64"
_MAX_HEADER = 25 * 1024 * 1024


async def all_classes(request: Request) -> Response:
    state = state_of(request)
    await state.all_classes()
    await state.learn_anew()

    def listing() -> bytes:
        files = state.files.anew()
        entries = {name: object_info(schema, files) for name, schema in state.schemas.items()}
        return json.dumps(entries, separators=(",", ":")).encode()

    return Response(await asyncio.to_thread(listing), media_type="application/json")


async def one_class(request: Request) -> Response:
    state = state_of(request)
    await state.all_classes()
    await state.learn_anew()
    name = str(request.path_params["name"])
    schema = state.schemas.get(name)
    if schema is None:
        return Answer({})
    return Answer({name: await asyncio.to_thread(object_info, schema, state.files.anew())})


async def model_kinds(request: Request) -> Response:
    return Answer(_kinds(state_of(request)))


async def models_of_kind(request: Request) -> Response:
    state = state_of(request)
    kind = _kind(state, request)
    return Answer(await asyncio.to_thread(state.files.anew(), kind))


async def model_folder_list(request: Request) -> Response:
    state = state_of(request)
    entries: list[JSON] = []
    for kind in _kinds(state):
        folders: list[JSON] = [str(directory) for directory in state.files.folders.directories(kind)]
        entries.append({"name": kind, "folders": folders})
    return Answer(entries)


async def model_file_list(request: Request) -> Response:
    state = state_of(request)
    kind = _kind(state, request)

    def entries() -> list[JSON]:
        found: list[JSON] = []
        directories = state.files.folders.directories(kind)
        for name in state.files.anew()(kind):
            index = next((i for i, d in enumerate(directories) if (d / name).is_file()), None)
            if index is None:
                continue
            with suppress(FileNotFoundError):  # it has just been taken away
                stat = (directories[index] / name).stat()
                found.append(
                    {
                        "name": name,
                        "pathIndex": index,
                        "modified": stat.st_mtime,
                        "created": stat.st_ctime,
                        "size": stat.st_size,
                    }
                )
        return found

    return Answer(await asyncio.to_thread(entries))


async def embeddings(request: Request) -> Response:
    names = await asyncio.to_thread(state_of(request).files.anew(), "embeddings")
    return Answer([os.path.splitext(name)[0] for name in names])


async def model_metadata(request: Request) -> Response:
    """The metadata in a safetensors file's header."""
    state = state_of(request)
    kind, name = _kind(state, request), request.query_params.get("filename", "")
    paths.parts_of(name)
    path = state.files.folders.find(kind, name)
    if path is None or path.suffix != ".safetensors":
        raise HTTPException(404)
    metadata = await asyncio.to_thread(_safetensors_metadata, path)
    return Answer(metadata) if metadata else Response(status_code=404)


def _safetensors_metadata(path: Path) -> dict[str, JSON]:
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: Any = json.loads(file.read(length)) if length <= _MAX_HEADER else {}
        metadata: Any = header.get("__metadata__")
    except (OSError, ValueError, struct.error, AttributeError, RecursionError):
        return {}
    return cast("dict[str, JSON]", metadata) if isinstance(metadata, dict) else {}


async def features(_request: Request) -> Response:
    return Answer(FEATURES)


async def system_stats(request: Request) -> Response:
    state = state_of(request)
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    worker = state.dispatcher.worker_info
    argv: list[JSON] = [*state.settings.argv]
    system: dict[str, JSON] = {
        "os": sys.platform if sys.platform != "linux" else os.name,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": COMFYUI_VERSION,
        "loraloom_version": state.settings.version,
        "required_frontend_version": None,
        "installed_templates_version": None,
        "required_templates_version": None,
        "python_version": sys.version,
        "pytorch_version": worker.get("torch"),
        "embedded_python": False,
        "argv": argv,
    }
    cpu: JSON = {
        "name": platform.processor() or "cpu",
        "type": "cpu",
        "index": None,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": total,
        "torch_vram_free": free,
    }
    devices = worker.get("devices") or [cpu]
    return Answer({"system": system, "devices": devices, "worker": dict(worker)})


async def empty_object(_request: Request) -> Response:
    return Answer({})


async def logs(request: Request) -> Response:
    entries = state_of(request).log.entries
    return Answer("".join(f"{e['t']} - {e['m']}" for e in entries))


async def raw_logs(request: Request) -> Response:
    entries: list[JSON] = [*state_of(request).log.entries]
    return Answer({"entries": entries, "size": {"cols": 80, "rows": 24}})


async def subscribe_logs(_request: Request) -> Response:
    return Response(status_code=200)


async def folder_paths(request: Request) -> Response:
    state = state_of(request)
    entries = {k: [str(d) for d in state.files.folders.directories(k)] for k in _kinds(state)}
    return Answer(entries)


async def missing(_request: Request) -> Response:
    return PlainTextResponse("", 404)


def _kinds(state: ServerState) -> list[str]:
    return [kind for kind in state.files.folders.kinds() if kind not in INPUT_KINDS]


def _kind(state: ServerState, request: Request) -> str:
    kind = str(request.path_params["kind"])
    if kind not in _kinds(state):
        raise HTTPException(404)
    return kind


def routes() -> list[Route]:
    return [
        Route("/object_info", all_classes, methods=["GET"]),
        Route("/object_info/{name:path}", one_class, methods=["GET"]),
        Route("/models", model_kinds, methods=["GET"]),
        Route("/models/{kind}", models_of_kind, methods=["GET"]),
        Route("/experiment/models", model_folder_list, methods=["GET"]),
        Route("/experiment/models/{kind}", model_file_list, methods=["GET"]),
        Route("/view_metadata/{kind}", model_metadata, methods=["GET"]),
        Route("/embeddings", embeddings, methods=["GET"]),
        Route("/features", features, methods=["GET"]),
        Route("/system_stats", system_stats, methods=["GET"]),
        Route("/i18n", empty_object, methods=["GET"]),
        Route("/workflow_templates", empty_object, methods=["GET"]),
        Route("/global_subgraphs", empty_object, methods=["GET"]),
        Route("/internal/logs", logs, methods=["GET"]),
        Route("/internal/logs/raw", raw_logs, methods=["GET"]),
        Route("/internal/logs/subscribe", subscribe_logs, methods=["PATCH"]),
        Route("/internal/folder_paths", folder_paths, methods=["GET"]),
        Route("/internal/files/{kind}", internal_files, methods=["GET"]),
    ]
