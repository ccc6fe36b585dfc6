"""Listens, until the process is asked to end."""

from __future__ import annotations

import errno
import socket
import sys

import uvicorn

from loraloom.errors import InputError
from loraloom.server.app import Setup, application, open_state
from loraloom.server.patience import PatientProtocol


class _Server(uvicorn.Server):
    """Says where it listens, on standard error, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            sys.stderr.write(f"Loraloom listens on http://{host}:{port}\n")
            sys.stderr.flush()


def serve(setup: Setup) -> None:
    """Run the server. Raises InputError when its address cannot be had, or its queue's file not be used."""
    listeners = listen(setup.settings.listen, setup.settings.port)
    try:
        state, store = open_state(setup)
        try:
            _Server(_config(setup, application(setup, state))).run(listeners)
        except SystemExit as error:
            raise InputError("the server could not start; what it printed above says why") from error
        finally:
            store.close()
    finally:
        for listener in listeners:
            listener.close()


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host. Raises InputError that says which cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--listen {host}: this is no address of this machine ({error})") from error
    listeners: list[socket.socket] = []
    trouble: OSError | None = None
    for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
        number = listeners[0].getsockname()[1] if listeners else port
        try:
            listeners.append(socket.create_server((str(address[0]), number), family=family, backlog=2048))
        except OSError as error:
            trouble = error
            if error.errno == errno.EADDRINUSE:
                break
    if not listeners or (trouble is not None and trouble.errno == errno.EADDRINUSE):
        for listener in listeners:
            listener.close()
        raise InputError(_why(host, port, trouble)) from trouble
    return listeners


def _why(host: str, port: int, error: OSError | None) -> str:
    code = None if error is None else error.errno
    if code == errno.EADDRINUSE:
        return f"{host}:{port} is in use by another program; choose another port with --port"
    if code == errno.EACCES and sys.platform == "win32":
        return f"{host}:{port} is in use by another program or set aside by Windows; choose another --port"
    if code == errno.EACCES:
        return f"{host}:{port} may not be used by this user; choose a --port above 1023"
    return f"cannot listen on {host}:{port} ({error}); choose another --listen or --port"


def _config(setup: Setup, app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=1 << 20,
        ws_ping_interval=30.0,
        ws_ping_timeout=30.0,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
