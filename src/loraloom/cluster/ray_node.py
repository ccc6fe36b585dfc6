"""A Ray node on this machine: a process of its own, started again whenever it ends.

`python -m loraloom.cluster.ray_node ARGUMENTS` becomes `ray start ARGUMENTS`, ended by the system with the
process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.atomic_file import write_file
from loraloom.errors import InputError
from loraloom.jobs.worker import die_with_parent

SLOT = "loraloom"
"""The resource of which a node has one for each worker that it can run."""
NODE_VARIABLE = "LORALOOM_NODE"
"""The environment variable that tells workers what is set for their node, as JSON."""
DEFAULT_PORT = 6379
_LONGEST_PAUSE = 15.0
_STEADY_SECONDS = 60.0
_SECONDS_TO_END = 10.0
_TOKEN_CHARACTERS = 32
_REFUSED, _UNANSWERED, _OTHER_VERSION = "InvalidAuthToken", "Failed to connect to GCS", "Version mismatch"
_REFUSAL = (
    "as it shows no secret or another one: copy user/cluster.token from the head and name it by --token-file"
)
_STARTED = "Ray runtime started"
_LATEST_LINES = 20
# How soon Ray calls a node dead that does not answer, and how soon a node gives its head up. Seconds, not
# minutes: a lease costs nothing but the work that is done twice. Workers have the priority that they have on
# a single machine, where Ray would give them the lowest.
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_worker_niceness": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",  # "patch" would refuse 3.11.9 beside 3.11.8
}


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What Ray may take of a machine for itself. object_store: bytes for what is being passed on."""

    object_store: int = 1 << 30
    temp_dir: Path | None = None

    def arguments(self) -> list[str]:
        folder = [] if self.temp_dir is None else [f"--temp-dir={self.temp_dir}"]
        return [
            f"--object-store-memory={self.object_store}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            "--block",
            *folder,
        ]


def head_arguments(address: str | None, port: int, limits: NodeLimits) -> list[str]:
    """`ray start` for the node that the others join. It runs no workers: the server has its own."""
    return [
        "--head",
        *([] if address is None else [f"--node-ip-address={address}"]),
        f"--port={port}",
        "--num-cpus=1",
        "--num-gpus=0",
        "--include-dashboard=false",
        *limits.arguments(),
    ]


def worker_arguments(
    head: str, workers: int, gpus: int | None, address: str | None, limits: NodeLimits
) -> list[str]:
    """`ray start` for a node that runs workers. gpus: None lets Ray look."""
    return [
        f"--address={head}",
        *([] if address is None else [f"--node-ip-address={address}"]),
        f"--num-cpus={max(workers, 1)}",
        *([] if gpus is None else [f"--num-gpus={gpus}"]),
        f"--resources={json.dumps({SLOT: workers})}",
        *limits.arguments(),
    ]


def ray_environment(token: str | None, **more: str) -> dict[str, str]:
    """The environment of everything that belongs to the cluster. token: None leaves it to the user's own."""
    known = {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return {**_RAY, **os.environ, **known, **more}


def cluster_token(file: Path) -> str:
    """The secret that the machines of a cluster share, made when there is none. Raises InputError."""
    try:
        if not file.exists():
            write_file(file, secrets.token_hex(_TOKEN_CHARACTERS).encode(), private=True)
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the cluster's secret {file} cannot be read ({error})") from error
    if len(token) < _TOKEN_CHARACTERS:
        raise InputError(f"{file} holds {len(token)} characters, expected at least {_TOKEN_CHARACTERS}")
    return token


def in_words(said: Sequence[str], head: str) -> str:
    """Why Ray ended, by the lines that it said last. head: the address of Ray's head."""
    text = " ".join(" ".join(said).split())
    if _REFUSED in text:
        return f"Ray's head at {head} refuses this machine, {_REFUSAL}"
    if _UNANSWERED in text:
        return (
            f"nothing answers as Ray's head at {head}: is it running, and can its port be reached from here?"
        )
    if _OTHER_VERSION in text:
        return text[text.rindex(_OTHER_VERSION) :][:500] + "; install the same versions on all machines"
    whole = [line.strip() for line in said if line[:1].strip()]  # of a traceback, what was raised
    return whole[-1][-400:] if whole else "no word"


def port_taken(port: int) -> bool:
    """Whether another program listens on a port of this machine."""
    with socket.socket() as own:
        if sys.platform != "win32":  # there it would let two programs listen
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


class RayNode:
    """Keeps a Ray node running. trouble: why it does not run."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Callable[[str], object],
        *,
        head: str = "",
        own_port: int | None = None,
    ) -> None:
        """head: the address of the head that it joins. own_port: where it is the head itself."""
        self._arguments, self._environment, self._log = arguments, environment, log
        self._head, self._own_port = head, own_port
        self._process: asyncio.subprocess.Process | None = None
        self._refused = False
        self.trouble: str | None = "it is still starting"

    async def keep(self) -> None:
        """Start it, and start it again when it has ended, after pauses that grow; until cancelled."""
        failures = 0
        while True:
            begun = time.monotonic()
            try:
                reason = self._without_port() or await self._once()
            finally:
                await self._end()
            failures = 0 if time.monotonic() - begun > _STEADY_SECONDS else failures + 1
            if reason != self.trouble:
                self._log(f"Ray does not run here: {reason}; it is started again\n")
            self.trouble = reason
            await asyncio.sleep(min(_LONGEST_PAUSE, 2.0**failures))

    def _without_port(self) -> str | None:
        if self._own_port is None or not port_taken(self._own_port):
            return None
        return f"port {self._own_port} is in use by another program; choose another by --cluster-port"

    async def _once(self) -> str:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loraloom.cluster.ray_node",
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        latest: deque[str] = deque(maxlen=_LATEST_LINES)
        while self._process.stdout and (data := await self._process.stdout.readline()):
            line = data.decode("utf-8", "replace")
            latest.append(line)
            if _STARTED in line:
                self.trouble = None
            if _REFUSED in line:
                self._say_refused()
            elif _worth_saying(line):
                self._log(line)
        await self._process.wait()
        return in_words([*latest], self._head)

    def _say_refused(self) -> None:
        """Once, where Ray says it every second and names no option of ours."""
        if not self._refused:
            self._refused = True
            self._log(f"Ray's head refuses this machine, {_REFUSAL}\n")

    async def _end(self) -> None:
        """End the process with all that it has started, and nothing else."""
        process = self._process
        if process is None or sys.platform == "win32":
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Its session is its own, so that the group holds nothing but Ray's processes.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS_TO_END):
                    await process.wait()
                if number is signal.SIGTERM:
                    await asyncio.sleep(0.5)


def _worth_saying(line: str) -> bool:
    if not line[:1].strip() or _UNANSWERED in line or _OTHER_VERSION in line:
        return False  # of a traceback, or told by the reason of the end
    return any(word in line for word in ("ERR", "rror", "unexpectedly", _STARTED))


def main() -> None:
    """Become `ray start`."""
    die_with_parent()
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", "start", *sys.argv[1:]])


if __name__ == "__main__":
    main()
