"""An application that is imported when it is first asked for."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import cast

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from loraloom.server.release import keep_for_good
from loraloom.server.state import ServerState, state_of


class LazyApp:
    """Stands for `create(state)` of a module that takes long to import."""

    def __init__(self, module: str, create: str) -> None:
        self._module, self._create = module, create
        self._app: ASGIApp | None = None
        self._importing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            async with self._importing:
                if self._app is None:
                    module = await asyncio.to_thread(importlib.import_module, self._module)
                    create = cast("Callable[[ServerState], ASGIApp]", getattr(module, self._create))
                    self._app = create(state_of(HTTPConnection(scope)))
                    keep_for_good()
        await self._app(scope, receive, send)
