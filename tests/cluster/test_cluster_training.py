"""A sweep of trainings by two machines of a real cluster, with the workers that `loraloom serve` uses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image
from tests.cluster.harness import ROOT, TestCluster
from tests.tiny_models import write_sd15

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every address of 127.0.0.0/8"),
]
SETTINGS = """
name = "thing"
output = "run"
model.checkpoint = "models/checkpoints/base.safetensors"
run = { steps = 40, resolution = 32, bucket_step = 8, dtype = "fp32", save_every = 5 }
data = [{ folder = "pictures" }]
sweep.values = { "adapter.rank" = [1, 2], "run.seed" = [1, 2] }
"""


class RealServer(TestCluster):
    __test__ = False

    def start_server(self) -> None:
        command = [
            *(sys.executable, "-m", "loraloom", "serve", "--port", str(self.port), "--no-frontend"),
            *("--models", "models", "--devices", "none", "--cluster", "auto"),
            *("--cluster-address", self.head_address, "--cluster-port", str(self.ray_port)),
        ]
        self.server = self._begin(command, "server")
        self.until(lambda: self.call("/prompt") is not None, 120)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[TestCluster]:
    folder = tmp_path_factory.mktemp("sweep")
    write_sd15(folder / "models/checkpoints/base.safetensors")
    with RealServer.on_loopback(folder, 8).running(180) as found:
        yield found


def test_a_sweep_is_trained_by_two_machines_one_of_which_loses_its_worker(cluster: TestCluster) -> None:
    pictures = cluster.folder / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (90 * number, 10, 10)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"number {number}")
    (cluster.folder / "settings.toml").write_text(SETTINGS, "utf-8")
    command = [sys.executable, "-m", "loraloom", "train", "settings.toml", "--json"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    asked = subprocess.Popen(
        [*command, "--server", f"http://127.0.0.1:{cluster.port}"],
        cwd=cluster.folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip

    def doing() -> list[str]:
        return [worker["doing"] for worker in cluster.workers()]

    cluster.until(lambda: sum(said.startswith("LoraloomTrainLora thing-") for said in doing()) == 2, 120)
    cluster.workers_of(cluster.machines[0])[0].kill()
    said, _ = asked.communicate(timeout=240)
    assert asked.returncode == 0, said
    runs = json.loads(said)["runs"]
    assert [run["status"] for run in runs] == ["done"] * 4 and {run["steps"] for run in runs} == {40}
    assert len({run["loss"] for run in runs}) == 4
    assert all(Path(cluster.folder, run["lora"]).is_file() for run in runs)
    jobs = cluster.call("/v1/jobs")["jobs"]
    assert sorted(job["attempts"] for job in jobs) == [1, 1, 1, 2]
    assert not [*cluster.folder.glob("cache-*/training/*/run/states")], "states go with the end of a run"
    assert all(
        [*(cluster.folder / f"cache-{m.name}").glob("checkpoints/base.safetensors")] for m in cluster.machines
    )
