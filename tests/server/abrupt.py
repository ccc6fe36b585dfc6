"""Clients that break off in the middle of everything."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct

from tests.jobs.tiny_runner import prompt

KEY = base64.b64encode(os.urandom(16)).decode()
UPGRADE = (
    "GET /ws?clientId={} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def breaks_off(port: int, sent: bytes, read: int = 0, *, reset: bool = True) -> None:
    """Send something, read a little, and end the connection: with a reset, or politely."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(sent)
        if read:
            client.recv(read)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def head(method: str, path: str, length: int = 0, more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def all_ways(port: int, job_id: str) -> None:
    """Break off a request, an answer, a stream, an upload and a WebSocket, each in both manners."""
    body = json.dumps({"prompt": prompt()}).encode()
    form = "Content-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    for reset in (True, False):
        for path in ("/prompt", "/v1/jobs", "/settings", "/userdata/a", "/queue"):
            breaks_off(port, head("POST", path, len(body) + 100) + body, reset=reset)
            breaks_off(port, head("POST", path, len(body)) + body, reset=reset)
        breaks_off(port, head("POST", "/upload/image", 100_000, form) + part + b"x" * 1000, reset=reset)
        for path in ("/queue", "/history", "/v1/jobs", "/object_info", "/view?filename=big.bin", "/"):
            breaks_off(port, head("GET", path), reset=reset)
            breaks_off(port, head("GET", path), 10, reset=reset)
        for path in ("/v1/events", f"/v1/jobs/{job_id}/events"):
            breaks_off(port, head("GET", path), 100, reset=reset)
        breaks_off(port, b"GET /pro", reset=reset)
        for number in range(3):
            breaks_off(port, UPGRADE.format(f"x{number}").encode(), reset=reset)
            breaks_off(port, UPGRADE.format(f"y{number}").encode(), 200, reset=reset)
