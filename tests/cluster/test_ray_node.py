"""What an operator is told when Ray does not run."""

from __future__ import annotations

import asyncio
import socket

import pytest

from loraloom.cluster.ray_node import RayNode, in_words

HEAD = "10.0.0.5:6379"


def test_a_port_that_another_program_has_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself says after twenty seconds that its own head may have been killed."""
    said: list[str] = []

    async def keep(port: int) -> str | None:
        node = RayNode([], {}, said.append, own_port=port)
        monkeypatch.setattr("loraloom.cluster.ray_node._LONGEST_PAUSE", 0.01)
        keeping = asyncio.create_task(node.keep())
        while len(said) < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return node.trouble

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        trouble = asyncio.run(keep(port))
    assert trouble is not None and f"port {port} is in use" in trouble and "--cluster-port" in trouble
    assert said == [f"Ray does not run here: {trouble}; it is started again\n"]


def test_other_versions_of_python_are_told_apart() -> None:
    utils = pytest.importorskip("ray._private.utils")
    known = {"ray_version": "1.2.3", "python_version": "3.99.1"}
    with pytest.raises(RuntimeError) as found:
        utils.check_version_info(known, "node 10.0.0.6")
    said = in_words(["Traceback", *f"RuntimeError: {found.value}".splitlines(keepends=True)], HEAD)
    assert "Ray: 1.2.3 Python: 3.99.1" in said and "install the same" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rpc_client.h:204: Failed to connect to GCS within 20 seconds", "nothing answers"),
        ("... InvalidAuthToken ...", "--token-file"),
        ("something new", "something new"),
        ("  at a line\n", "no word"),
    ],
)  # fmt: skip
def test_what_ray_says_is_told_in_words(line: str, words: str) -> None:
    said = in_words([line], HEAD)
    assert words in said and (words in (line, "no word") or HEAD in said) and "GCS" not in said
