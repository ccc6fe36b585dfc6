"""What is served at /: ComfyUI's editor where it is installed, else a page of our own."""

from __future__ import annotations

import importlib.util
import mimetypes
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loraloom.server import paths
from loraloom.server.answers import Answer
from loraloom.server.editor_routes import EXTENSION
from loraloom.server.file_answers import FileAnswer
from loraloom.server.state import state_of
from loraloom.workflow.graph import JSON

# Windows' registry may say otherwise, and browsers refuse scripts of another type.
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_OWN = Path(__file__).parent / "data" / "page"


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
    folder = frontend(request)
    return _own("index.html") if folder is None else static(folder, "index.html")


async def own_page(request: Request) -> Response:
    return _own("index.html")


async def own_file(request: Request) -> Response:
    return _own(str(request.path_params["name"]))


def _own(name: str) -> Response:
    """A file of our page, under a policy: nothing from elsewhere, no inline script."""
    return static(_OWN, name, {"Content-Security-Policy": _OWN_POLICY})


async def extensions(request: Request) -> Response:
    folder = frontend(request)
    scripts: list[JSON] = []
    if folder is not None:
        found = (folder / "extensions").rglob("*.js")
        scripts = [*(f"/{path.relative_to(folder).as_posix()}" for path in sorted(found)), EXTENSION]
    return Answer(scripts)


async def user_css(request: Request) -> Response:
    """The user's own style sheet, where there is one, else the editor's."""
    folder = frontend(request)
    own = state_of(request).settings.user_dir / "default" / "user.css"
    for path in (own, *(() if folder is None else (folder / "user.css",))):
        if path.is_file():
            return _answer(path, {})
    raise HTTPException(404)


async def static_file(request: Request) -> Response:
    folder = frontend(request)
    if folder is None:
        raise HTTPException(404)
    return static(folder, str(request.path_params["name"]))


def static(root: Path, name: str, headers: dict[str, str] | None = None) -> Response:
    """A file below a folder, as browsers want it. HTTPException(404) where there is none."""
    path = paths.inside(root, name)
    if not path.is_file():
        raise HTTPException(404)
    return _answer(path, headers or {})


def _answer(path: Path, headers: dict[str, str]) -> Response:
    """Browsers ask each time whether a file is still the same, which after an update it is not."""
    with paths.answered():
        file = open(path, "rb")  # noqa: SIM115 - the answer closes it
    media_type = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    return FileAnswer(file, media_type or "application/octet-stream", headers)


def routes() -> list[Route]:
    """The routes that are not mirrored under /api; the last one takes every other path."""
    return [
        Route("/", index, methods=["GET"]),
        Route("/loraloom", own_page, methods=["GET"]),
        Route("/loraloom/{name:path}", own_file, methods=["GET"]),
        Route("/user.css", user_css, methods=["GET"]),
        Route("/{name:path}", static_file, methods=["GET"]),
    ]
