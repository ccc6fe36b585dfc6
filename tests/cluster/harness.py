"""A head and its nodes as processes on one machine: each with an address of its own, in the loopback range or
in a network namespace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from loraloom.cli.cluster_head import TOKEN_FILE
from loraloom.cluster.ray_node import NodeLimits, cluster_token, head_arguments, ray_environment

ROOT = Path(__file__).parents[2]
OBJECT_STORE = "80M"
_ASK = """
import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], data, timeout=20).read())
"""


def _ray_folder() -> Path:
    """Where Ray's sockets lie, whose paths have 107 bytes at most."""
    return Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp" if sys.platform == "linux" else None))


@dataclass
class Machine:
    """A node: its address, and what to put before its commands to run them there."""

    name: str
    address: str
    inside: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None


@dataclass
class TestCluster:
    """A folder, a server that is the head, and nodes. rows: jobs that a worker is given together at most.
    inside: what to put before the head's commands, and before what asks the server."""

    __test__ = False

    folder: Path
    machines: list[Machine]
    head_address: str = "127.0.0.2"
    listen: str = "127.0.0.1"
    port: int = 18300
    ray_port: int = 6390
    here: int = 0
    cluster: str = "auto"
    most: int = 0
    rows: int = 1
    inside: Sequence[str] = ()
    server: subprocess.Popen[bytes] | None = None
    ray: Path = field(default_factory=_ray_folder)
    _logs: list[Any] = field(default_factory=lambda: list[Any]())

    # ---- Processes ----

    @classmethod
    def on_loopback(cls, folder: Path, first: int, nodes: str = "ab", **more: Any) -> Self:
        """A head at 127.0.0.`first`, and nodes at the addresses behind it. Tests may run beside each other
        whose addresses differ."""
        machines = [Machine(name, f"127.0.0.{first + 1 + number}") for number, name in enumerate(nodes)]
        ports = {"port": 18300 + first, "ray_port": 6380 + first}
        return cls(folder, machines, f"127.0.0.{first}", **ports, **more)

    @contextmanager
    def running(self, seconds: float) -> Generator[Self]:
        """The head with a worker on each machine, all ready within so many seconds."""
        try:
            self.start_server()
            for machine in self.machines:
                self.start_node(machine)
            self.until(lambda: self.idle() == len(self.machines), seconds)
            yield self
        finally:
            self.stop()

    def start_server(self) -> None:
        command = [
            *(sys.executable, "-m", "tests.cluster.cluster_server", str(self.folder)),
            *("--port", str(self.port), "--listen", self.listen, "--address", self.head_address),
            *("--cluster", self.cluster, "--cluster-port", str(self.ray_port), "--here", str(self.here)),
            *("--cluster-most", str(self.most), "--rows", str(self.rows)),
            *("--ray-dir", str(self.ray)),
        ]
        self.server = self._begin([*self.inside, *command], "server")
        self.until(lambda: self.call("/prompt") is not None, 120)

    def start_ray(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """A Ray head that is nobody's, for a server that joins it."""
        limits = NodeLimits(80_000_000, self.ray)
        arguments = head_arguments(self.head_address, self.ray_port, limits)
        token = cluster_token(self.folder / "user" / TOKEN_FILE)
        command = [sys.executable, "-m", "loraloom.cluster.ray_node", *arguments, *options]
        return self._begin(command, "ray-head", ray_environment(token, **environment))

    def start_node(self, machine: Machine, *options: str) -> None:
        command = [
            *machine.inside,
            *(sys.executable, "-m", "loraloom", "cluster", "worker", f"{self.head_address}:{self.ray_port}"),
            *("--token-file", str(self.folder / "user" / TOKEN_FILE), "--devices", "cpu"),
            *("--address", machine.address, "--object-store", OBJECT_STORE),
            *(
                "--cache",
                str(self.folder / f"cache-{machine.name}"),
                "--models",
                str(self.folder / machine.name),
            ),
            *options,
        ]
        machine.process = self._begin(command, machine.name)

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        """Kill a process with SIGKILL; what it started has to end by itself."""
        if process is not None:
            process.kill()
            process.wait()

    def end(self, machine: Machine) -> None:
        """Stop a node for good."""
        self.machines.remove(machine)
        if machine.process is not None:
            self._end([machine.process])

    def stop(self) -> None:
        """End everything."""
        self._end([p for p in (self.server, *(m.process for m in self.machines)) if p is not None])
        for log in self._logs:
            log.close()
        shutil.rmtree(self.ray, ignore_errors=True)

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """End processes with all they have started; what does not end by itself is killed."""
        started = [child for p in processes for child in self.tree(p)]
        for process in processes:
            process.terminate()
        _, left = psutil.wait_procs(started, 20)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        for process in processes:
            process.wait(5)

    @staticmethod
    def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """A process and all that it has started."""
        with suppress(psutil.Error):
            own = psutil.Process(process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def workers_of(self, machine: Machine) -> list[psutil.Process]:
        """The processes that run jobs on a machine."""
        found: list[psutil.Process] = []
        for process in self.tree(machine.process) if machine.process else []:
            with suppress(psutil.Error):
                if "loraloom.jobs.worker" in process.cmdline():
                    found.append(process)
        return found

    def _begin(
        self, command: Sequence[str], name: str, environment: Mapping[str, str] = os.environ
    ) -> subprocess.Popen[bytes]:
        log = open(self.folder / f"{name}.log", "ab")  # noqa: SIM115 - the child keeps it
        self._logs.append(log)
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=log,
            stderr=log,
            env={**environment, "PYTHONPATH": path},
            start_new_session=True,
        )

    # ---- What it says ----

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON answer; None when there is no server."""
        url, data = f"http://{self.listen}:{self.port}{path}", None if body is None else json.dumps(body)
        try:
            if self.inside:
                command = [*self.inside, sys.executable, "-c", _ASK, url, *([] if data is None else [data])]
                return json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=60))
            with urllib.request.urlopen(url, None if data is None else data.encode(), timeout=20) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError, subprocess.SubprocessError):
            return None

    def submit(self, prompt: dict[str, Any], job_id: str | None = None) -> str | None:
        """Queue a job; its id when that was acknowledged."""
        more = {} if job_id is None else {"prompt_id": job_id}
        answer = self.call("/prompt", {"prompt": prompt, **more})
        return None if answer is None else answer.get("prompt_id")

    def machine_of(self, worker: str) -> Machine:
        """The node that a worker of this name runs on."""
        nodes = self.call("/v1/workers")["nodes"]
        (address,) = [n["address"] for n in nodes if worker.startswith(f"{n['host']}-{n['id'][-6:]}/")]
        return next(machine for machine in self.machines if machine.address == address)

    def workers(self) -> list[dict[str, Any]]:
        found = self.call("/v1/workers")
        return [] if found is None else found["workers"]

    def idle(self) -> int:
        return sum(w["status"] in ("idle", "running") for w in self.workers())

    def job(self, job_id: str) -> dict[str, Any]:
        return self.call(f"/v1/jobs/{job_id}") or {"status": "unknown"}

    def done(self, job_id: str, seconds: float = 120) -> dict[str, Any]:
        """The job, once it has ended."""
        self.until(lambda: self.job(job_id)["status"] not in ("unknown", "pending", "running"), seconds)
        return self.job(job_id)

    def until(self, condition: Callable[[], Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = [p.read_text("utf-8", "replace")[-1500:] for p in self.folder.glob("*.log")]
                raise AssertionError(f"not within {seconds:g} s\n" + "\n---\n".join(logs))
            time.sleep(0.1)
