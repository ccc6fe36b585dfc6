"""What the official editor has a place for: pictures of models, and our extension (`data/editor`)."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from loraloom.server import paths
from loraloom.server.pictures import picture_beside, thumbnail
from loraloom.server.state import state_of

EXTENSION = "/extensions/loraloom/loraloom.js"
_SCRIPT = Path(__file__).parent / "data" / "editor" / "loraloom.js"
PREVIEW_WIDTH = 512


async def model_preview(request: Request) -> Response:
    """The picture beside a model file, which the editor asks for as "folder/name.webp"."""
    state = state_of(request)
    directories = state.files.folders.directories(str(request.path_params["kind"]))
    index = int(request.path_params["index"])
    parts = paths.parts_of(str(request.path_params["name"]))
    if index >= len(directories) or not parts:
        raise HTTPException(404)
    folder = directories[index].joinpath(*parts[:-1])
    picture = picture_beside(folder, parts[-1].removesuffix(".webp"))
    if picture is None:
        raise HTTPException(404)
    return await thumbnail(request, picture, PREVIEW_WIDTH, state.settings.max_pixels)


async def extension(_request: Request) -> Response:
    return FileResponse(_SCRIPT, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


def routes() -> list[Route]:
    """The routes that are mirrored under /api."""
    return [
        Route("/experiment/models/preview/{kind}/{index:int}/{name:path}", model_preview, methods=["GET"])
    ]


def extension_routes() -> list[Route]:
    return [Route(EXTENSION, extension, methods=["GET"])]
