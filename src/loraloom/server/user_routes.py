"""ComfyUI's routes for what the editor keeps: settings, saved workflows."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loraloom.atomic_file import SUFFIX, explained, move_file, part_file, remove, write_file
from loraloom.confined import open_regular
from loraloom.server import paths
from loraloom.server.answers import Answer
from loraloom.server.bodies import read_bytes, read_object, read_value
from loraloom.server.file_answers import served
from loraloom.server.state import state_of
from loraloom.workflow.graph import JSON
from loraloom.workflow.json_text import SURROGATE

_SETTINGS = "comfy.settings.json"
_MAX_LISTED = 10_000
_CHANGING = asyncio.Lock()


def user_root(request: Request) -> Path:
    return state_of(request).settings.user_dir / "default"


async def users(_request: Request) -> Response:
    return Answer({"storage": "server", "migrated": True})


async def get_settings(request: Request) -> Response:
    return Answer(_read_settings(request))


async def post_settings(request: Request) -> Response:
    changes = await read_object(request, state_of(request).settings.max_json)
    await _change_settings(request, changes)
    return Response(status_code=200)


async def get_setting(request: Request) -> Response:
    return Answer(_read_settings(request).get(str(request.path_params["name"])))


async def post_setting(request: Request) -> Response:
    value = await read_value(request, state_of(request).settings.max_json)
    await _change_settings(request, {str(request.path_params["name"]): value})
    return Response(status_code=200)


def _read_settings(request: Request) -> dict[str, JSON]:
    """The settings; none when there is no file, or one that holds none. Raises HTTPException 503 for one that
    cannot be read now: to write over it would forget them."""
    place = user_root(request) / _SETTINGS
    if place.exists() and not place.is_file():
        raise HTTPException(503, "the settings cannot be read (something else than a file has their place)")
    try:
        with open_regular(place) as file:
            value: Any = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise HTTPException(503, f"the settings cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, JSON]", value) if isinstance(value, dict) else {}


async def _change_settings(request: Request, changes: dict[str, JSON]) -> None:
    """One change after the other, in a thread: the disk may take its time."""

    def change() -> None:
        settings = {**_read_settings(request), **changes}
        write_file(user_root(request) / _SETTINGS, json.dumps(settings, indent=4).encode())

    async with _CHANGING:
        await asyncio.to_thread(change)


async def list_userdata(request: Request) -> Response:
    query = request.query_params
    directory = query.get("dir")
    if not directory:
        return PlainTextResponse("Directory not provided", 400)
    root = paths.inside(user_root(request), directory)
    if not root.is_dir():
        return PlainTextResponse("Directory not found", 404)
    recurse, full = query.get("recurse") == "true", query.get("full_info") == "true"
    split = query.get("split") == "true"

    def listing() -> list[JSON]:
        found: list[JSON] = []
        pattern = "**/*" if recurse else "*"
        for path in sorted(p for p in root.glob(pattern) if _is_listed(p)):
            name = path.relative_to(root).as_posix()
            with suppress(FileNotFoundError):  # it has just been taken away
                found.append(_info(path, name) if full else [name, *name.split("/")] if split else name)
            if len(found) >= _MAX_LISTED:
                break
        return found

    return Answer(await asyncio.to_thread(listing))


def _is_listed(path: Path) -> bool:
    return not (path.name.endswith(SUFFIX) or SURROGATE.search(str(path))) and path.is_file()


async def get_userdata(request: Request) -> Response:
    name = _file_of(request)
    return served(paths.opened(user_root(request), name), paths.parts_of(name)[-1])


async def post_userdata(request: Request) -> Response:
    moved = _move_of(request)
    if moved is not None:
        return _move(request, *moved)
    name, root = _file_of(request), user_root(request)
    path = paths.inside(root, name)
    if path == paths.inside(root, "") or path.is_dir() or path.name == _SETTINGS:
        raise HTTPException(400, "that is no name of a file")
    content = await read_bytes(request, state_of(request).settings.max_json)
    if request.query_params.get("overwrite") == "false" and path.exists():
        return PlainTextResponse("File already exists", 409)
    *parts, last = paths.parts_of(name)

    def write() -> None:
        with (
            paths.folder_inside(root, parts, make=True) as folder,
            part_file(folder, content, named=path.parent) as part,
        ):
            part.replace(folder / last)

    await asyncio.to_thread(write)
    return _answer(request, path)


async def delete_userdata(request: Request) -> Response:
    *parts, last = paths.parts_of(_file_of(request))
    with paths.folder_inside(user_root(request), parts) as folder:
        if not (folder / last).is_file():
            return Response(status_code=404)
        with explained(folder / last):
            remove(folder / last)
    return Response(status_code=204)


def _move(request: Request, source: str, target: str) -> Response:
    root = user_root(request)
    old, new = paths.inside(root, source), paths.inside(root, target)
    if not old.is_file():
        return Response(status_code=404)
    if new == paths.inside(root, "") or new.is_dir():
        raise HTTPException(400, "that is no name of a file")
    if request.query_params.get("overwrite") == "false" and new.exists():
        return PlainTextResponse("File already exists", 409)
    *old_parts, old_name = paths.parts_of(source)
    *new_parts, new_name = paths.parts_of(target)
    with (
        paths.folder_inside(root, old_parts) as old_folder,
        paths.folder_inside(root, new_parts, make=True) as new_folder,
        explained(new),
    ):
        move_file(old_folder / old_name, new_folder / new_name)
    return _answer(request, new)


def _answer(request: Request, path: Path) -> Response:
    name = path.relative_to(paths.inside(user_root(request), "")).as_posix()
    if request.query_params.get("full_info") != "true":
        return Answer(name)
    with paths.answered():
        return Answer(_info(path, name))


def _info(path: Path, name: str) -> dict[str, JSON]:
    stat = path.stat()
    return {
        "path": name,
        "size": stat.st_size,
        "modified": int(stat.st_mtime * 1000),
        "created": int(stat.st_ctime * 1000),
    }


def _segments(request: Request) -> list[str]:
    """The parts of the raw path behind "userdata": slashes within a file's name are escaped there."""
    raw = cast("bytes", request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    return raw.partition("?")[0].partition("/userdata/")[2].split("/")


def _move_of(request: Request) -> tuple[str, str] | None:
    segments = _segments(request)
    return (
        (unquote(segments[0]), unquote(segments[2])) if len(segments) == 3 and segments[1] == "move" else None
    )


def _file_of(request: Request) -> str:
    name = "/".join(unquote(segment) for segment in _segments(request))
    if not paths.parts_of(name):
        raise HTTPException(400, "the name of the file is missing")
    return name


def routes() -> list[Route]:
    return [
        Route("/users", users, methods=["GET"]),
        Route("/settings", get_settings, methods=["GET"]),
        Route("/settings", post_settings, methods=["POST"]),
        Route("/settings/{name:path}", get_setting, methods=["GET"]),
        Route("/settings/{name:path}", post_setting, methods=["POST"]),
        Route("/userdata", list_userdata, methods=["GET"]),
        Route("/userdata/{file:path}", get_userdata, methods=["GET"]),
        Route("/userdata/{file:path}", post_userdata, methods=["POST"]),
        Route("/userdata/{file:path}", delete_userdata, methods=["DELETE"]),
    ]
