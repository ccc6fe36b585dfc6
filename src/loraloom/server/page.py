"""What is served at /: ComfyUI's editor where it is installed, else a small page of our own."""

from __future__ import annotations

import importlib.util
import mimetypes
from functools import cache
from importlib import resources
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from loraloom.server import paths
from loraloom.server.answers import Answer
from loraloom.server.state import state_of
from loraloom.workflow.graph import JSON

# Windows' registry may say otherwise, and browsers refuse scripts of another type.
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
}
_OWN_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


@cache
def package_folder(package: str, folder: str) -> Path | None:
    """A folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(place) / folder
        if path.is_dir():
            return path
    return None


def frontend(request: Request) -> Path | None:
    """The editor's files, when it is installed and wanted."""
    wanted = state_of(request).settings.frontend
    return package_folder("comfyui_frontend_package", "static") if wanted else None


async def index(request: Request) -> Response:
    static = frontend(request)
    headers = {"Cache-Control": "no-cache"}
    if static is not None:
        return FileResponse(static / "index.html", headers=headers)
    return _own("page.html", headers)


async def own_page(_request: Request) -> Response:
    return _own("page.html", {"Cache-Control": "no-cache"})


async def own_file(request: Request) -> Response:
    name = str(request.path_params["name"])
    if name not in ("page.js", "page.css"):
        raise HTTPException(404)
    return _own(name, {"Cache-Control": "no-cache"})


def _own(name: str, headers: dict[str, str]) -> Response:
    content = resources.files("loraloom.server").joinpath(f"data/{name}").read_bytes()
    media_type = _TYPES.get(Path(name).suffix, "text/html")
    return Response(
        content, media_type=media_type, headers={**headers, "Content-Security-Policy": _OWN_POLICY}
    )


async def extensions(request: Request) -> Response:
    static = frontend(request)
    scripts: list[JSON] = []
    if static is not None:
        found = (static / "extensions").rglob("*.js")
        scripts = [f"/{path.relative_to(static).as_posix()}" for path in sorted(found)]
    return Answer(scripts)


async def templates(request: Request) -> Response:
    folder = package_folder("comfyui_workflow_templates_json", "templates")
    if folder is None:
        raise HTTPException(404)
    return _static(folder, str(request.path_params["name"]))


async def user_css(request: Request) -> Response:
    path = state_of(request).settings.user_dir / "default" / "user.css"
    if not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, media_type="text/css")


async def static_file(request: Request) -> Response:
    static = frontend(request)
    if static is None:
        raise HTTPException(404)
    return _static(static, str(request.path_params["name"]))


def _static(root: Path, name: str) -> Response:
    path = paths.inside(root, name)
    if not path.is_file():
        raise HTTPException(404)
    media_type = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    return FileResponse(path, media_type=media_type or "application/octet-stream")


def routes() -> list[Route]:
    """The routes that are not mirrored under /api; the last one takes every other path."""
    return [
        Route("/", index, methods=["GET"]),
        Route("/loraloom", own_page, methods=["GET"]),
        Route("/loraloom/{name}", own_file, methods=["GET"]),
        Route("/user.css", user_css, methods=["GET"]),
        Route("/templates/{name:path}", templates, methods=["GET"]),
        Route("/{name:path}", static_file, methods=["GET"]),
    ]
