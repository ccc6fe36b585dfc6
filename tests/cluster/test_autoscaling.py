"""Ray's own autoscaler brings nodes for jobs that wait and takes idle ones away: with Ray's provider that
starts nodes on this machine in place of a cloud's."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.harness import TestCluster
from tests.cluster.picture_runner import prompt

from loraloom.cluster.ray_node import SLOT

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every address of 127.0.0.0/8"),
]
ADDRESS, PORT = "127.0.0.11", 6391
MOST = 2


def config(workers: int) -> dict[str, Any]:
    """What `ray up` would be given for a cloud."""
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
             "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
             "rsync_filter")  # fmt: skip
    return {
        "cluster_name": "fake_multinode",
        "max_workers": workers,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode", "gcs_address": f"{ADDRESS}:{PORT}", "launch_multiple": True,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, SLOT: 1, "object_store_memory": 80_000_000},
                "node_config": {}, "min_workers": 0, "max_workers": workers,
            },
        },
        "docker": {}, "auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        **{name: [] for name in empty},
    }  # fmt: skip


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[TestCluster]:
    folder = tmp_path_factory.mktemp("scale")
    found = TestCluster.on_loopback(folder, 11, "", cluster=f"{ADDRESS}:{PORT}", most=MOST)
    (folder / "autoscaling.yaml").write_text(json.dumps(config(MOST + 2)))
    ray = found.start_ray(
        f"--autoscaling-config={folder / 'autoscaling.yaml'}",
        RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1",
    )  # fmt: skip
    try:
        found.start_server()
        yield found
    finally:
        found.stop()
        if sys.platform != "win32":
            with suppress(ProcessLookupError):
                os.killpg(ray.pid, signal.SIGKILL)  # its session is its own, and its nodes are in it
        ray.wait(30)


def nodes(cluster: TestCluster) -> list[str]:
    return [node["id"] for node in (cluster.call("/v1/workers") or {"nodes": []})["nodes"]]


def pictures(folder: Path) -> int:
    return len([*(folder / "output").glob("scaled_*.png")])


def test_waiting_jobs_bring_nodes_and_idle_ones_leave(cluster: TestCluster) -> None:
    cluster.until(lambda: (cluster.call("/v1/workers") or {}).get("error") is None, 90)
    time.sleep(10)
    assert nodes(cluster) == [], "without jobs there is nothing to bring"
    jobs = [str(cluster.submit(prompt(number, 2.0, "scaled"))) for number in range(12)]
    cluster.until(lambda: len(nodes(cluster)) == MOST and cluster.idle() == MOST, 150)
    ended = [cluster.done(job, 120) for job in jobs]
    assert {job["status"] for job in ended} == {"completed"} and pictures(cluster.folder) == 12
    assert all(worker["per_minute"] for worker in cluster.workers()), "every node that came did something"
    assert len(nodes(cluster)) == MOST, "no more came than --cluster-most says"
    cluster.until(lambda: nodes(cluster) == [], 180)
    again = cluster.done(str(cluster.submit(prompt(99, 0.5, "scaled"))), 150)
    assert again["status"] == "completed" and pictures(cluster.folder) == 13
