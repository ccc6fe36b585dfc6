"""What holds for any text that a stranger sends."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loraloom.confined import BadName, parts_of
from loraloom.errors import InputError
from loraloom.jobs.job import Job, Request
from loraloom.jobs.notices import Notice
from loraloom.server.events import EventLog, event
from loraloom.server.hub import Endings
from loraloom.server.listing import _parts  # pyright: ignore[reportPrivateUsage]
from loraloom.server.security import check_host, check_origin
from loraloom.server.settings import ServerSettings
from loraloom.server.webhook_address import is_public, parse

Text = st.text(st.characters(), max_size=40)
MANY = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def server_settings(tmp_path_factory: pytest.TempPathFactory) -> ServerSettings:
    folder = tmp_path_factory.mktemp("server")
    return ServerSettings(folder / "output", folder / "input", folder / "temp", folder / "user", port=8188)


@MANY
@given(Text | st.text("./\\~:cCoOnN .\0%", max_size=20))
def test_a_name_is_refused_or_stays_inside(name: str) -> None:
    try:
        parts = parts_of(name)
    except BadName:
        return
    assert all(part not in ("", ".", "..") and not set(part) & set("/\\\0") for part in parts)
    assert not name.startswith(("/", "\\"))


@MANY
@given(Text | st.builds("http://{}/{}".format, Text, Text) | st.builds("https://{}:{}".format, Text, Text))
def test_a_webhook_is_refused_or_fits_a_request_line(url: str) -> None:
    try:
        address = parse(url)
    except InputError:
        return
    assert 1 <= address.port <= 65535
    assert (
        address.target.startswith("/") and address.target.isascii() and not set(address.target) & set(" \r\n")
    )
    assert address.host and not set(address.host_header) & set(" \r\n/@")


@MANY
@given(st.ip_addresses())
def test_what_is_public_is_public_by_every_spelling(address: object) -> None:
    public = is_public(str(address))
    assert not (public and (getattr(address, "is_private", False) or getattr(address, "is_loopback", False)))
    if "." in str(address):
        assert is_public(f"::ffff:{address}") == public
        assert is_public(f"64:ff9b::{address}") == public


@MANY
@given(Text)
def test_only_names_of_this_machine_are_answered(server_settings: ServerSettings, host: str) -> None:
    accepted = check_host({"host": host}, server_settings) is None
    name = host.strip().lower()
    assert (
        not accepted
        or name.startswith(("localhost", "["))
        or set(name) <= set("0123456789abcdef:.%")
        or ("%" in name)
    )


@MANY
@example("http://[", "POST")
@example("null", "POST")
@given(Text | st.builds("http://{}".format, Text), st.sampled_from(["GET", "POST", "DELETE", "WEBSOCKET"]))
def test_no_other_origin_is_ours(server_settings: ServerSettings, origin: str, method: str) -> None:
    headers = {"host": "127.0.0.1:8188", "origin": origin}
    refused = check_origin(method, headers, server_settings) is not None
    assert refused or origin.split("/")[2:3] == ["127.0.0.1:8188"]


@MANY
@given(st.lists(st.integers(0, 5_000_000), max_size=60))
def test_parts_of_a_list_are_the_list(sizes: list[int]) -> None:
    parts = [*_parts([(str(n), size) for n, size in enumerate(sizes)])]
    assert [i for part in parts for i in part] == [str(n) for n in range(len(sizes))]
    assert all(parts)
    assert all(sum(sizes[int(i)] for i in part[:-1]) < 4 << 20 for part in parts)


@MANY
@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(200, 3000))
def test_the_replay_has_every_event_behind_a_position_or_says_so(
    lengths: list[int], kept: int, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraloom.server.events.KEPT", kept)
        patch.setattr("loraloom.server.events.KEPT_BYTES", size)
        log = EventLog()
        for length in lengths:
            log.hear(Notice("note", Job("a", 0.0, Request({})), {"x": "y" * length}))
        for position in range(len(lengths) + 2):
            found = log.since(position)
            if found is not None:
                assert [e.number for e in found] == [*range(position + 1, len(lengths) + 1)]
            else:
                assert position > len(lengths) or position < len(lengths) - len(log.entries)
        assert len(log.entries) <= kept
        assert not log.entries or log.size <= max(size, len(log.entries[-1].text))


@MANY
@given(Text, Text)
def test_a_servers_event_is_one_event(kind: str, text: str) -> None:
    lines = event("note", {kind: text}, "e-1").split("\n")
    assert lines[:2] == ["id: e-1", "event: note"]
    assert lines[2].startswith("data: {") and lines[3:] == ["", ""]


@MANY
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=80))
def test_a_client_is_told_once_of_what_it_missed(ended: list[tuple[int, bool]]) -> None:
    endings, missed = Endings(), {str(i): deque[str](maxlen=50) for i in range(4)}
    for number, (client, told) in enumerate(ended):
        endings.note(str(client), f"job{number}", told)
        if not told:
            missed[str(client)].append(f"job{number}")
    for client, jobs in missed.items():
        assert endings.take(client) == [*jobs]
        assert endings.take(client) == []
