"""A Ray node on this machine: a process of its own, started again whenever it ends.

`python -m loraloom.cluster.ray_node ARGUMENTS` becomes `ray start ARGUMENTS`, ended by the system with the
process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
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
_REFUSED = "InvalidAuthToken"
_REFUSAL = (
    "as it shows no secret or another one: copy user/cluster.token from the head and name it by --token-file"
)
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


class RayNode:
    """Keeps a Ray node running."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: Callable[[str], object]
    ) -> None:
        self._arguments, self._environment, self._log = arguments, environment, log
        self._process: asyncio.subprocess.Process | None = None
        self._refused = False

    async def keep(self) -> None:
        """Start it, and start it again when it has ended, after pauses that grow; until cancelled."""
        failures = 0
        while True:
            begun = time.monotonic()
            try:
                reason = await self._once()
            finally:
                await self._end()
            failures = 0 if time.monotonic() - begun > _STEADY_SECONDS else failures + 1
            self._log(f"the Ray node has ended: {reason}; it is started again\n")
            await asyncio.sleep(min(_LONGEST_PAUSE, 2.0**failures))

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
        latest = ""
        while self._process.stdout and (line := await self._process.stdout.readline()):
            latest = line.decode("utf-8", "replace")
            if _REFUSED in latest:
                self._say_refused()
            elif _worth_saying(latest):
                self._log(latest)
        return f"exit code {await self._process.wait()}, {latest.strip()[:500]}"

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
    return any(
        word in line for word in ("ERR", "Error", "error", "rror:", "unexpectedly", "Ray runtime started")
    )


def main() -> None:
    """Become `ray start`."""
    die_with_parent()
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", "start", *sys.argv[1:]])


if __name__ == "__main__":
    main()
