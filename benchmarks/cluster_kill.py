"""Kills workers, nodes, the driver and the head of a cluster, cuts links, and counts what is lost.

    python benchmarks/cluster_kill.py --jobs 300

Three nodes run in network namespaces of their own, joined to the head's by virtual cables, so that a cut link
is one. Needs root and iproute2; makes its own namespaces and deletes them. At the end every acknowledged job
must have one result, and every picture must be whole and there once. A job whose workers were killed twice is
put aside, as it should be, and retried.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from PIL import Image
from tests.cluster.harness import Machine, TestCluster
from tests.cluster.network import HUB, address, network, space, switch
from tests.cluster.picture_runner import prompt

NODES = "abc"
_INSIDE = "LORALOOM_KILL_INSIDE"
GROUP = os.environ.get(_INSIDE) or str(os.getpid())


@dataclass
class Attack:
    """What is done to a cluster while it works."""

    cluster: TestCluster
    chance: random.Random
    done: Counter[str] = field(default_factory=lambda: Counter[str]())
    later: list[tuple[float, Callable[[], None]]] = field(
        default_factory=lambda: list[tuple[float, Callable[[], None]]]()
    )

    def do(self, kind: str) -> bool:
        """One attack, if there is something to attack; whether there was."""
        if not getattr(self, f"_{kind}")():
            return False
        self.done[kind] += 1
        return True

    def mend(self, everything: bool = False) -> None:
        """What was broken for a while is made good again."""
        due = [action for at, action in self.later if everything or at <= time.monotonic()]
        self.later = [(at, a) for at, a in self.later if not everything and at > time.monotonic()]
        for action in due:
            action()

    def _up(self) -> list[Machine]:
        return [m for m in self.cluster.machines if m.process is not None]

    def _worker(self) -> bool:
        found = [p for m in self._up() for p in self.cluster.workers_of(m)]
        if not found:
            return False
        with suppress(psutil.Error):
            self.chance.choice(found).kill()
        return True

    def _actor(self) -> bool:
        found = [p.parent() for m in self._up() for p in self.cluster.workers_of(m)]
        parents = [p for p in found if p is not None]
        if not parents:
            return False
        with suppress(psutil.Error):
            self.chance.choice(parents).kill()
        return True

    def _node(self) -> bool:
        machine = self.chance.choice(self._up() or self.cluster.machines)
        if machine.process is None:
            return False
        self.cluster.kill(machine.process)
        machine.process = None
        self.later.append((time.monotonic() + 3, lambda: self.cluster.start_node(machine)))
        return True

    def _driver(self) -> bool:
        for process in self.cluster.tree(self.cluster.server) if self.cluster.server else []:
            with suppress(psutil.Error):
                if "loraloom.cluster.driver" in process.cmdline():
                    process.kill()
                    return True
        return False

    def _head(self) -> bool:
        self.cluster.kill(self.cluster.server)
        self.cluster.start_server()
        return True

    def _link(self) -> bool:
        name = self.chance.choice(NODES)
        switch(GROUP, name, on=False)
        seconds = self.chance.uniform(4, 45)
        self.later.append((time.monotonic() + seconds, lambda: switch(GROUP, name, on=True)))
        return True


def drive(
    cluster: TestCluster, attack: Attack, kinds: list[str], jobs: int, seconds: float, end: float
) -> set[str]:
    """Submit the jobs and attack until all have ended; the ids of those that were acknowledged."""
    acknowledged: set[str] = set()
    next_attack, retried = time.monotonic() + 5, 0
    while time.monotonic() < end:
        attack.mend()
        waiting = (cluster.call("/v1/queue") or {}).get("pending", jobs)
        most = len(acknowledged) + 10 if kinds and waiting < 10 else jobs  # attacks need something to attack
        for number in range(len(acknowledged), min(max(jobs, most), len(acknowledged) + 10)):
            value = f"{number:08d}-0000-4000-8000-000000000000"
            if cluster.submit(prompt(number, seconds, "kill"), value) is None and not _known(cluster, value):
                break
            acknowledged.add(value)
        if kinds and time.monotonic() > next_attack and any(w["job"] for w in cluster.workers()):
            if attack.do(kinds[-1]):
                sys.stdout.write(f"{time.strftime('%X')} {kinds.pop()}; {_counts(cluster)}\n")
                sys.stdout.flush()
            next_attack = time.monotonic() + attack.chance.uniform(4, 12)
        for job in (cluster.call("/v1/jobs?status=quarantined&limit=500") or {}).get("jobs", []):
            retried += cluster.call(f"/v1/jobs/{job['id']}/retry", {}) is not None
        queue = cluster.call("/v1/queue")
        if len(acknowledged) >= jobs and not kinds and queue and not queue["pending"] + queue["running"]:
            break
        time.sleep(0.5)
    attack.mend(everything=True)
    sys.stdout.write(f"put aside after two killed workers and retried: {retried}\n")
    return acknowledged


def _known(cluster: TestCluster, job_id: str) -> bool:
    return cluster.job(job_id)["status"] != "unknown"


def _counts(cluster: TestCluster) -> Any:
    queue = cluster.call("/v1/queue") or {}
    return {name: queue.get(name) for name in ("pending", "running")}


def verdict(cluster: TestCluster, acknowledged: set[str]) -> int:
    """Print what was lost, is there twice, or is not whole; how much of it there is."""
    jobs = {job_id: cluster.job(job_id) for job_id in sorted(acknowledged)}
    lost = [i for i, job in jobs.items() if job["status"] != "completed"]
    named: Counter[str] = Counter(
        f["filename"] for job in jobs.values() for f in job.get("outputs", []) if f["type"] == "output"
    )
    values: Counter[int] = Counter()
    truncated: list[str] = []
    for path in (cluster.folder / "output").glob("*.png"):
        try:
            with Image.open(path) as picture:
                red, green, _ = picture.convert("RGB").getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]
                values[red + 256 * green] += 1
        except OSError:
            truncated.append(path.name)
    duplicated = [name for name, count in named.items() if count > 1]
    duplicated += [str(value) for value, count in values.items() if count > 1]
    orphans = {p.name for p in (cluster.folder / "output").glob("*.png")} - named.keys()
    missing = [i for i in range(len(jobs)) if not values[i]]
    attempts = Counter(job.get("attempts") for job in jobs.values())
    left = [*cluster.folder.glob("output/.incoming*/*")]
    sys.stdout.write(
        f"{len(jobs)} jobs acknowledged; lost {len(lost)}, pictures missing {len(missing)}, "
        f"duplicated {len(duplicated)}, without a job {len(orphans)}, truncated {len(truncated)}, "
        f"left behind {len(left)}\n"
        f"attempts: {dict(sorted(attempts.items()))}\n"
    )
    return len(lost) + len(missing) + len(duplicated) + len(orphans) + len(truncated) + len(left)


def inside(options: argparse.Namespace) -> int:
    """The benchmark itself, in the head's namespace."""
    chance = random.Random(options.seed)
    names = ("worker", "actor", "node", "driver", "head", "link")
    kinds = [kind for kind in names for _ in range(getattr(options, f"{kind}s"))]
    chance.shuffle(kinds)
    machines = [
        Machine(name, address(i), ("ip", "netns", "exec", space(GROUP, name))) for i, name in enumerate(NODES)
    ]
    with tempfile.TemporaryDirectory(prefix="loom-") as folder:
        cluster = TestCluster(Path(folder), machines, head_address=HUB, listen=HUB, ray_port=6379)
        try:
            cluster.start_server()
            for machine in machines:
                cluster.start_node(machine)
            cluster.until(lambda: cluster.idle() == len(machines), 300)
            attack, begun = Attack(cluster, chance), time.monotonic()
            acknowledged = drive(
                cluster, attack, kinds, options.jobs, options.seconds, begun + 60 * options.minutes
            )
            took = time.monotonic() - begun
            done = f"{took:.0f} s for {len(acknowledged)} jobs"
            sys.stdout.write(f"seed {options.seed}, attacks: {dict(attack.done)}; {done}\n")
            return min(1, verdict(cluster, acknowledged) + max(0, options.jobs - len(acknowledged)))
        finally:
            cluster.stop()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=300, help="at least; more while attacks are left")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a job sleeps")
    parser.add_argument("--workers", type=int, default=12, help="worker processes to kill")
    parser.add_argument("--actors", type=int, default=3, help="their Ray actors to kill")
    parser.add_argument("--nodes", type=int, default=4, help="nodes to kill")
    parser.add_argument("--drivers", type=int, default=2, help="drivers to kill")
    parser.add_argument("--heads", type=int, default=2, help="heads to kill, with Ray's")
    parser.add_argument("--links", type=int, default=5, help="links to cut")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if _INSIDE in os.environ:
        return inside(options)
    with network(GROUP, NODES):
        command = ["ip", "netns", "exec", space(GROUP, "hub"), sys.executable, __file__, *arguments]
        return subprocess.run(command, check=False, env={**os.environ, _INSIDE: GROUP}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
