"""Listens, until the process is asked to end."""

from __future__ import annotations

import socket
import sys

import uvicorn

from loraloom.errors import InputError
from loraloom.server.app import Setup, application


class _Server(uvicorn.Server):
    """Says where it listens, on standard error, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                sys.stderr.write(f"Loraloom listens on http://{host}:{port}\n")
                sys.stderr.flush()


def serve(setup: Setup) -> None:
    """Run the server. Raises InputError when its address cannot be had."""
    config = uvicorn.Config(
        application(setup),
        host=setup.settings.listen,
        port=setup.settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="websockets-sansio",
        ws_max_size=1 << 20,
        ws_ping_interval=30.0,
        ws_ping_timeout=30.0,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config)
    try:
        server.run()
    except SystemExit as error:
        raise InputError(
            f"cannot listen on {setup.settings.listen}:{setup.settings.port}; is the port in use? "
            "Choose another with --port"
        ) from error
