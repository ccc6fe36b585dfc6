"""A real Ray cluster on the addresses of the loopback range: a head and two nodes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cluster.harness import Machine, TestCluster
from tests.cluster.picture_runner import prompt

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every address of 127.0.0.0/8"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[TestCluster]:
    with TestCluster.on_loopback(tmp_path_factory.mktemp("cluster"), 2, rows=4).running(300) as found:
        yield found


def pictures(cluster: TestCluster, name: str) -> list[Path]:
    found = sorted((cluster.folder / "output").glob(f"{name}_*.png"))
    for path in found:
        with Image.open(path) as picture:
            picture.load()
    return found


def test_jobs_run_on_both_nodes_and_their_pictures_come_here(cluster: TestCluster) -> None:
    jobs = [cluster.submit(prompt(i, 0.3, "plain")) for i in range(8)]
    ended = [cluster.done(str(job)) for job in jobs]
    assert {job["status"] for job in ended} == {"completed"}
    assert len(pictures(cluster, "plain")) == 8
    named = {f["filename"] for job in ended for f in job["outputs"] if f["type"] == "output"}
    assert named == {p.name for p in pictures(cluster, "plain")}
    assert [*cluster.folder.glob("output/.incoming*/*")] == []
    rates = [worker["per_minute"] for worker in cluster.workers()]
    assert len(rates) == 2 and all(rates)


def test_jobs_that_are_alike_run_together_on_each_node(cluster: TestCluster) -> None:
    """One of them fails, of which the others notice nothing."""
    before = [str(cluster.submit(prompt(i, 3.0, "before"))) for i in range(2)]
    cluster.until(lambda: all(cluster.job(job)["status"] == "running" for job in before), 60)
    fates = ["fail" if i == 5 else "" for i in range(8)]
    jobs = [str(cluster.submit(prompt(i, 2.0, "alike", fate))) for i, fate in enumerate(fates)]
    cluster.until(lambda: sum(len(worker["jobs"]) > 1 for worker in cluster.workers()) == 2, 60)
    ended = [cluster.done(job) for job in jobs]
    assert [job["status"] for job in ended] == ["failed" if fate else "completed" for fate in fates]
    assert {job["attempts"] for job in ended} == {1}
    completed = [
        cluster.call(f"/history/{job}")[job] for job, fate in zip(jobs, fates, strict=True) if not fate
    ]
    # Of eight, the first worker takes four, the next two, and the last two run by themselves; one fails.
    assert sum(int(job["outputs"]["1"]["text"][0]) > 1 for job in completed) >= 5
    assert len(pictures(cluster, "alike")) == 7
    assert [*cluster.folder.glob("output/.incoming*/*")] == []


def test_a_machine_with_two_devices_has_two_workers(cluster: TestCluster) -> None:
    machine = Machine("two", "127.0.0.5")
    cluster.start_node(machine, "--devices", "cpu,cpu:0")  # as two GPUs would be named
    cluster.machines.append(machine)
    try:
        cluster.until(lambda: cluster.idle() == 4, 300)
        (node,) = [n for n in cluster.call("/v1/workers")["nodes"] if n["address"] == machine.address]
        assert node["workers"] == 2 and len(cluster.workers_of(machine)) == 2
        jobs = [str(cluster.submit(prompt(i, 2.0, "two"))) for i in range(4)]
        cluster.until(lambda: sum(w["status"] == "running" for w in cluster.workers()) == 4, 60)
        assert {cluster.done(job)["status"] for job in jobs} == {"completed"}
    finally:
        cluster.end(machine)
    cluster.until(lambda: cluster.idle() == 2, 300)


def test_a_file_that_nodes_lack_comes_from_the_head(cluster: TestCluster) -> None:
    file = cluster.folder / "models/loras/hat.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(os.urandom(40_000_000))
    prompt: dict[str, Any] = {"1": {"class_type": "ReadFile", "inputs": {"lora_name": "hat.safetensors"}}}
    job = cluster.done(str(cluster.submit(prompt)))
    assert job["status"] == "completed", job
    copies = [*cluster.folder.glob("cache-*/loras/hat.safetensors")]
    assert len(copies) == 1 and copies[0].read_bytes() == file.read_bytes()
    # The same under another name, for a node that lacks it: the former name is no place to read it from.
    copies[0].unlink()
    file.rename(file.with_name("cap.safetensors"))
    prompt["1"]["inputs"]["lora_name"] = "cap.safetensors"
    job = cluster.done(str(cluster.submit(prompt)))
    assert job["status"] == "completed", job


def test_a_job_is_cancelled_right_after_it_has_begun(cluster: TestCluster) -> None:
    job = str(cluster.submit(prompt(9, 60.0, "stopped")))
    cluster.until(lambda: cluster.job(job)["status"] == "running", 60)
    assert cluster.call(f"/v1/jobs/{job}/cancel", {}) == {"cancelled": True}
    ended = cluster.done(job)
    assert (ended["status"], ended["worker_deaths"]) == ("cancelled", 0)
    assert cluster.idle() == 2  # the worker has not been ended for it


def test_a_job_that_kills_two_workers_is_put_aside(cluster: TestCluster) -> None:
    job = cluster.done(str(cluster.submit(prompt(1, 0.1, "crash", "crash"))))
    assert (job["status"], job["worker_deaths"]) == ("quarantined", 2)
    assert "signal 9" in job["error"]["message"]
    assert pictures(cluster, "crash") == []
    cluster.until(lambda: cluster.idle() == 2, 120)


def test_a_job_of_a_killed_worker_runs_again(cluster: TestCluster) -> None:
    job = str(cluster.submit(prompt(2, 3.0, "again")))
    cluster.until(lambda: cluster.job(job)["status"] == "running", 60)
    (running,) = [w["name"] for w in cluster.workers() if w["job"] == job]
    machine = cluster.machine_of(running)
    cluster.workers_of(machine)[0].kill()
    ended = cluster.done(job)
    assert (ended["status"], ended["attempts"], ended["worker_deaths"]) == ("completed", 2, 1)
    assert len(pictures(cluster, "again")) == 1


def test_a_job_of_a_killed_node_runs_elsewhere_and_the_node_comes_back(cluster: TestCluster) -> None:
    cluster.until(lambda: cluster.idle() == 2, 120)
    job = str(cluster.submit(prompt(3, 3.0, "node")))
    cluster.until(lambda: cluster.job(job)["status"] == "running", 60)
    (running,) = [w["name"] for w in cluster.workers() if w["job"] == job]
    machine = cluster.machine_of(running)
    cluster.kill(machine.process)
    ended = cluster.done(job)
    assert (ended["status"], ended["worker_deaths"]) == ("completed", 0)
    assert len(pictures(cluster, "node")) == 1
    cluster.start_node(machine)
    cluster.until(lambda: cluster.idle() == 2, 300)


def test_the_head_and_its_driver_may_be_killed(cluster: TestCluster) -> None:
    jobs = [str(cluster.submit(prompt(i, 1.0, "head"))) for i in range(6)]
    cluster.until(lambda: any(cluster.job(job)["status"] == "running" for job in jobs), 60)
    cluster.kill(cluster.server)
    cluster.start_server()
    ended = [cluster.done(job, 240) for job in jobs]
    assert {job["status"] for job in ended} == {"completed"}
    assert len(pictures(cluster, "head")) == 6


def test_a_server_joins_a_ray_that_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = TestCluster.on_loopback(tmp_path_factory.mktemp("join"), 6, "c", here=1)
    found.cluster = f"{found.head_address}:{found.ray_port}"
    ray = found.start_ray()
    try:
        found.start_server()
        found.start_node(found.machines[0])
        found.until(lambda: found.idle() == 2, 300)
        jobs = [found.done(str(found.submit(prompt(i, 0.5, "joined")))) for i in range(2)]
        jobs += [found.done(job) for job in [str(found.submit(prompt(i, 1.0, "both"))) for i in range(4)]]
        assert {job["status"] for job in jobs} == {"completed"}
        assert len(pictures(found, "joined")) == 2 and len(pictures(found, "both")) == 4
        assert all(worker["per_minute"] for worker in found.workers())
    finally:
        found.stop()
        ray.terminate()
        ray.wait(30)
