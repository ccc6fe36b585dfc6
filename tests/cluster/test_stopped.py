"""Processes of a cluster that stand still for longer than a lease and go on, as on a machine that swaps."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Generator

import psutil
import pytest
from tests.cluster.harness import TestCluster
from tests.cluster.picture_runner import prompt

from loraloom.cluster.node_worker import LEASE_SECONDS
from loraloom.jobs.notices import Limits

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every address of 127.0.0.0/8"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[TestCluster]:
    with TestCluster.on_loopback(tmp_path_factory.mktemp("still"), 12).running(300) as found:
        yield found


def process(cluster: TestCluster, which: str, worker: str) -> psutil.Process:
    """The process that is called so, of the worker that runs the job where it is a node's."""
    if which in ("worker", "actor"):
        (found,) = cluster.workers_of(cluster.machine_of(worker))
        return found if which == "worker" else psutil.Process(found.ppid())
    assert cluster.server is not None
    tree = cluster.tree(cluster.server)
    return tree[0] if which == "head" else next(p for p in tree if "loraloom.cluster.driver" in p.cmdline())


@pytest.mark.parametrize("which", ["worker", "actor", "driver", "head"])
def test_what_stood_still_does_nothing_twice(cluster: TestCluster, which: str) -> None:
    cluster.until(lambda: cluster.idle() == 2, 240)
    job = str(cluster.submit(prompt(3, 20.0, which)))
    cluster.until(lambda: cluster.job(job)["status"] == "running", 60)
    (worker,) = [w["name"] for w in cluster.workers() if w["job"] == job]
    others = [str(cluster.submit(prompt(number, 1.0, f"{which}-other"))) for number in range(4)]
    still = process(cluster, which, worker)
    still.suspend()
    time.sleep((Limits().silence if which == "worker" else LEASE_SECONDS) + 15)
    if still.is_running():
        still.resume()
    ended = cluster.done(job, 240)
    assert ended["status"] == "completed" and ended["attempts"] <= 2, ended
    # Of a worker whose machine is heard of and that says nothing, the job may be the cause.
    assert ended["worker_deaths"] <= (which == "worker"), ended
    assert {cluster.done(other)["status"] for other in others} == {"completed"}
    cluster.until(lambda: cluster.idle() == 2, 240)
    time.sleep(5)  # what stood still may say more now
    assert len([*(cluster.folder / "output").glob(f"{which}_*.png")]) == 1
    assert len([*(cluster.folder / "output").glob(f"{which}-other_*.png")]) == 4
    assert not [*cluster.folder.glob("output/.incoming*/*")]
