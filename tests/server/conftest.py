"""Servers for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.server.running import RunningServer, start


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers on one folder; all end with the test."""
    running: list[RunningServer] = []

    def begin(*options: str) -> RunningServer:
        running.append(start(tmp_path, *options))
        return running[-1]

    yield begin
    for server in running:
        server.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests of a module."""
    found = start(tmp_path_factory.mktemp("server"))
    yield found
    found.end()
