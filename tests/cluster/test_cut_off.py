"""A machine that loses its network and comes back, with network namespaces as machines."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Generator

import pytest
from tests.cluster.harness import Machine, TestCluster
from tests.cluster.network import HUB, address, can_be_made, network, space, switch
from tests.cluster.picture_runner import prompt

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
GROUP = str(os.getpid())
NODES = "ab"


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[TestCluster]:
    if not can_be_made():
        pytest.skip("network namespaces take root and iproute2")
    with network(GROUP, NODES):
        machines = [
            Machine(name, address(number), ("ip", "netns", "exec", space(GROUP, name)))
            for number, name in enumerate(NODES)
        ]
        folder = tmp_path_factory.mktemp("cut")
        found = TestCluster(
            folder, machines, HUB, HUB, ray_port=6379, inside=("ip", "netns", "exec", space(GROUP, "hub"))
        )
        with found.running(300):
            yield found


def test_a_machine_that_was_cut_off_comes_back_and_does_nothing_twice(cluster: TestCluster) -> None:
    job = str(cluster.submit(prompt(7, 15.0, "cut")))
    cluster.until(lambda: cluster.job(job)["status"] == "running", 60)
    (worker,) = [w["name"] for w in cluster.workers() if w["job"] == job]
    name = cluster.machine_of(worker).name
    switch(GROUP, name, on=False)
    cluster.until(lambda: cluster.job(job)["attempts"] == 2, 180)
    others = [str(cluster.submit(prompt(number, 0.2, "other"))) for number in range(3)]
    switch(GROUP, name, on=True)
    ended = cluster.done(job, 240)
    assert (ended["status"], ended["attempts"], ended["worker_deaths"]) == ("completed", 2, 0)
    assert {cluster.done(other)["status"] for other in others} == {"completed"}
    cluster.until(lambda: cluster.idle() == len(NODES), 300)
    time.sleep(5)  # what the machine that was cut off had made may come now
    assert len([*(cluster.folder / "output").glob("cut_*.png")]) == 1
    assert len([*(cluster.folder / "output").glob("other_*.png")]) == 3
    assert [*cluster.folder.glob("output/.incoming*/*")] == []
    assert cluster.job(job)["attempts"] == 2
