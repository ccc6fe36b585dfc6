"""Calls that tell a client's own server that its job has ended.

They wait in the store until they are delivered, so that a crash loses none. Each is signed: the header
`X-Loraloom-Signature` is `t=SECONDS,v1=HEX`, with HEX = HMAC-SHA256(secret, SECONDS + "." + body). Addresses
in private networks are refused unless their host is allowed, and the address that was checked is the one that
is called. One that is refused, or given up after several attempts, becomes a warning of its job.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import ssl
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from loraloom.atomic_file import write_file
from loraloom.errors import InputError
from loraloom.jobs.dispatcher import Dispatcher
from loraloom.jobs.job import Job
from loraloom.server import wire
from loraloom.server.webhook_address import Address, parse, resolve
from loraloom.workflow.json_text import write_json

MAX_ATTEMPTS = 8
_POLL_SECONDS = 1.0
_PAUSE_AFTER_FAULT = 5.0
_CALL_SECONDS = 20.0
_AT_ONCE = 200
_MAX_HEAD = 64 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})\b")


class Webhooks:
    """Delivers what is due, each in a task of its own: one that hangs or fails holds up no other."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        secret: bytes,
        allowed_hosts: Collection[str],
        log: Callable[[str], object],
    ) -> None:
        self._dispatcher, self._secret, self._allowed, self._log = dispatcher, secret, allowed_hosts, log
        self._calling: dict[str, asyncio.Task[None]] = {}

    async def work(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self._begin_due()
                except Exception as error:  # noqa: BLE001 - a locked file, a full disk: later all is well again
                    self._log(f"webhooks: {error}; trying again\n")
                    await asyncio.sleep(_PAUSE_AFTER_FAULT)
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            for task in self._calling.values():
                task.cancel()
            await asyncio.gather(*self._calling.values(), return_exceptions=True)

    async def _begin_due(self) -> None:
        now, limit = time.time(), len(self._calling) + 20
        for job_id, url, attempts in await self._dispatcher.read(lambda s: s.due_deliveries(now, limit)):
            if job_id not in self._calling and len(self._calling) < _AT_ONCE:
                task = asyncio.create_task(self._deliver(job_id, url, attempts))
                self._calling[job_id] = task
                task.add_done_callback(lambda _, i=job_id: self._calling.pop(i, None))

    async def _deliver(self, job_id: str, url: str, attempts: int) -> None:
        try:
            await self._try(job_id, url, attempts)
        except Exception as error:  # noqa: BLE001 - it stays due, and the others are delivered
            self._log(f"webhooks: the call for job {job_id} could not be noted ({error})\n")
            await asyncio.sleep(_PAUSE_AFTER_FAULT)

    async def _try(self, job_id: str, url: str, attempts: int) -> None:
        job = await self._dispatcher.read(lambda s: s.find(job_id))
        if job is None:
            return
        try:
            address = parse(url)
            ip = await resolve(address, self._allowed)
            async with asyncio.timeout(_CALL_SECONDS):
                await call(address, ip, body_of(job), self._secret)
        except InputError as error:
            await self._end(job_id, f"the webhook {url} was refused: {error}")
        except Exception as error:  # noqa: BLE001 - whatever the other side did
            said = str(error) or type(error).__name__
            if attempts + 1 >= MAX_ATTEMPTS:
                await self._end(
                    job_id, f"the webhook {url} was given up after {MAX_ATTEMPTS} attempts: {said}"
                )
            else:
                due = time.time() + 2.0**attempts
                await self._dispatcher.call(lambda s: s.postpone_delivery(job_id, due))
        else:
            await self._dispatcher.call(lambda s: s.delivered(job_id))

    async def _end(self, job_id: str, warning: str) -> None:
        await self._dispatcher.call(lambda s: (s.delivered(job_id), s.warn(job_id, warning)))
        self._log(f"job {job_id}: {warning}\n")


def body_of(job: Job) -> bytes:
    return write_json({"event": f"job.{job.status}", "job": wire.job_detail(job)}).encode()


def signature(secret: bytes, seconds: int, body: bytes) -> str:
    digest = hmac.new(secret, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


def secret_of(user_dir: Path) -> bytes:
    """The key that signs; made once, readable by the owner alone."""
    path = user_dir / "webhook.secret"
    if not path.exists():
        write_file(path, secrets.token_hex(32).encode(), private=True)
    return path.read_bytes().strip()


async def call(address: Address, ip: str, body: bytes, secret: bytes) -> None:
    """POST a signed body to `ip`, which is where the address leads. Raises OSError for any answer but 2xx."""
    head = (
        f"POST {address.target} HTTP/1.1\r\nHost: {address.host_header}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Loraloom-Signature: {signature(secret, int(time.time()), body)}\r\n\r\n"
    )
    how = _tls() if address.secure else None
    name = address.host if address.secure else None
    reader, writer = await asyncio.open_connection(
        ip, address.port, ssl=how, server_hostname=name, limit=_MAX_HEAD
    )
    try:
        writer.write(head.encode("ascii") + body)
        await writer.drain()
        line = await reader.readline()
    finally:
        writer.transport.abort()
    status = _STATUS_LINE.match(line)
    if status is None:
        raise OSError(f"{address.host} answered with something that is no HTTP")
    if not 200 <= int(status[1]) < 300:
        raise OSError(f"{address.host} answered {int(status[1])}")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
