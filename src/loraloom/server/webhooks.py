"""Calls that tell a client's own server that its job has ended.

They wait in the store until they are delivered, so that a crash loses none. Each is signed: the header
`X-Loraloom-Signature` is `t=SECONDS,v1=HEX`, with HEX = HMAC-SHA256(secret, SECONDS + "." + body). Addresses
in private networks are refused unless their host is allowed, and the address that was checked is the one that
is called.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import ipaddress
import json
import secrets
import socket
import ssl
import time
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from loraloom.atomic_file import write_file
from loraloom.errors import InputError
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Job
from loraloom.server import wire

MAX_ATTEMPTS = 8
_POLL_SECONDS = 1.0
_TIMEOUT_SECONDS = 10.0


class Webhooks:
    """Delivers what is due, in a task of its own."""

    def __init__(self, dispatcher: Dispatcher, secret: bytes, allowed_hosts: Collection[str]) -> None:
        self._dispatcher, self._secret, self._allowed = dispatcher, secret, allowed_hosts

    async def work(self) -> None:
        while True:
            now = time.time()
            due = await self._dispatcher.call(lambda s, t=now: s.due_deliveries(t))
            await asyncio.gather(*(self._deliver(*delivery) for delivery in due))
            await asyncio.sleep(_POLL_SECONDS)

    async def _deliver(self, job_id: str, url: str, attempts: int) -> None:
        job = await self._dispatcher.call(lambda s: s.find(job_id))
        if job is None:
            return
        try:
            await asyncio.to_thread(call, url, body_of(job), self._secret, self._allowed)
        except InputError:
            await self._dispatcher.call(lambda s: s.delivered(job_id))
        except (OSError, http.client.HTTPException):
            if attempts + 1 >= MAX_ATTEMPTS:
                await self._dispatcher.call(lambda s: s.delivered(job_id))
            else:
                due = time.time() + 2.0**attempts
                await self._dispatcher.call(lambda s: s.postpone_delivery(job_id, due))
        else:
            await self._dispatcher.call(lambda s: s.delivered(job_id))


def body_of(job: Job) -> bytes:
    return json.dumps({"event": f"job.{job.status}", "job": wire.job_detail(job)}).encode()


def signature(secret: bytes, seconds: int, body: bytes) -> str:
    digest = hmac.new(secret, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


def secret_of(user_dir: Path) -> bytes:
    """The key that signs; made once, readable by the owner alone."""
    path = user_dir / "webhook.secret"
    if not path.exists():
        write_file(path, secrets.token_hex(32).encode(), private=True)
    return path.read_text().strip().encode()


def call(url: str, body: bytes, secret: bytes, allowed_hosts: Collection[str]) -> None:
    """POST a signed body. Raises InputError for an address that may not be called, OSError when it fails."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = checked_address(host, port, allowed_hosts)
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    plain = socket.create_connection((address, port), timeout=_TIMEOUT_SECONDS)
    try:
        secure = parts.scheme == "https"
        connection.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        )
        headers = {
            "Content-Type": "application/json",
            "X-Loraloom-Signature": signature(secret, int(time.time()), body),
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, headers)
        answer = connection.getresponse()
        answer.read(65_536)
        if answer.status >= 300:
            raise OSError(f"{host} answered {answer.status}")
    finally:
        connection.close()
        plain.close()


def checked_address(host: str, port: int, allowed_hosts: Collection[str]) -> str:
    """The address of a host; InputError when it is in a private network and not allowed."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    address = str(found[0][4][0])
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    if not (mapped or parsed).is_global and host.lower() not in allowed_hosts:
        raise InputError(f"{host} is in a private network; webhooks there need --allow-webhook {host}")
    return address
