"""Webhooks: which addresses are taken, and what becomes of calls that fail."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.tiny_runner import prompt
from tests.server.running import RunningServer
from tests.server.test_api import done, receiver, submit

from loraloom.errors import InputError
from loraloom.server.webhook_address import is_public, parse, resolve

BAD = (
    "http://a..b/",
    "http://h:99999/",
    "http://h:abc/",
    "http://h:0/",
    "http://[::1/",
    "http://[::g]/",
    "http://[v1.a:b]/",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 127}example/",
    "http://example.com/ü",
    "http://exämple.com/",
    "http://example.com/a b",
    "http://example.com/a\r\nX: y",
    "http://user:secret@example.com/",
    "http://",
    "http:///x",
    "ftp://example.com/",
    "http://-/",
    "x" * 3000,
    "\ud800",
)


@pytest.mark.parametrize("url", BAD)
def test_addresses_that_cannot_be_called_are_refused_when_a_job_is_queued(
    server: RunningServer, url: str
) -> None:
    with pytest.raises(InputError):
        parse(url)
    body = json.dumps({"workflow": prompt(), "webhook": url})
    answer = server.http.post("/v1/jobs", content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"]["error"]["type"] == "invalid_webhook"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://h.example/", "h.example"),
        ("https://h.example:443/", "h.example"),
        ("https://h.example:80/", "h.example:80"),
        ("http://h.example:80/", "h.example"),
        ("http://h.example:443/", "h.example:443"),
        ("http://h.example:1/", "h.example:1"),
        ("http://[2606:4700::1]:8080/", "[2606:4700::1]:8080"),
    ],
)
def test_the_host_header_has_no_port_that_goes_without_saying(url: str, host: str) -> None:
    assert parse(url).host_header == host


def test_the_parts_of_an_address() -> None:
    found = parse("https://hooks.example.com:8443/a%20b?c=d#e")
    assert (found.secure, found.host, found.port, found.target) == (
        True,
        "hooks.example.com",
        8443,
        "/a%20b?c=d",
    )
    assert found.host_header == "hooks.example.com:8443"
    assert parse("http://[2001:db8::1]").host_header == "[2001:db8::1]"


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::7f00:1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d70e", True),
        ("64:ff9b:1::5db8:d70e", False),
        ("2002:7f00:1::1", False),
        ("2002:a00:1::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_private_networks_are_told_apart_however_they_are_written(ip: str, public: bool) -> None:
    assert is_public(ip) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::1]"])
def test_webhooks_do_not_reach_into_private_networks(host: str) -> None:
    address = parse(f"http://{host}/")
    with pytest.raises(InputError, match="private network"):
        asyncio.run(resolve(address, set()))
    assert asyncio.run(resolve(address, {address.host})) in ("127.0.0.1", "::1")


def _until(condition: Callable[[], Any], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_refused_webhook_is_a_warning_of_its_job_and_stops_no_other(server: RunningServer) -> None:
    refused = submit(server, prompt(), webhook="http://10.1.2.3/x")["id"]
    with receiver() as (url, got):
        job = submit(server, prompt(value=78), webhook=url)["id"]
        _until(lambda: len(got) >= 2)
    assert json.loads(got[1][1])["job"]["id"] == job
    _until(lambda: done(server, refused)["warnings"])
    assert "10.1.2.3" in done(server, refused)["warnings"][0]
    assert "--allow-webhook" in done(server, refused)["warnings"][0]
    assert "was refused" in str(server.http.get(f"/history/{refused}").json()[refused]["warnings"])


def test_one_that_never_answers_holds_up_no_other(server: RunningServer) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for _ in range(25):
            submit(server, prompt(), webhook=address)
        with receiver() as (url, got):
            submit(server, prompt(value=79), webhook=url)
            _until(lambda: len(got) >= 2)
    finally:
        silent.close()


def test_webhooks_go_on_after_their_file_was_locked(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    with receiver() as (url, got):
        job = submit(server, prompt(), webhook=url)["id"]
        done(server, job)
        other = sqlite3.connect(server.folder / "user" / "queue.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        time.sleep(6)
        other.execute("ROLLBACK")
        other.close()
        _until(lambda: len(got) >= 2)


def test_a_row_with_an_address_of_former_versions_stops_nothing(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server()
    first = submit(server, prompt())["id"]
    done(server, first)
    database = sqlite3.connect(Path(server.folder) / "user" / "queue.db")
    database.execute("INSERT INTO deliveries (job, url, due) VALUES (?, ?, 0)", (first, "http://a..b/"))
    database.commit()
    database.close()
    _until(lambda: done(server, first)["warnings"])
    assert "was refused" in done(server, first)["warnings"][0]
    assert threading.active_count() < 50
