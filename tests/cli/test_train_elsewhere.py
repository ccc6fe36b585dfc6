"""A sweep that a server's worker trains: pictures go there, LoRAs come back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from loraloom.cli.main import exit_code_of
from loraloom.cli.server_jobs import ServerJobs
from loraloom.weights.tensor_file import TensorFile
from tests.cli.test_server_jobs import serving
from tests.tiny_models import write_sd15


@pytest.fixture
def server(tmp_path: Path) -> Generator[str]:
    root = tmp_path / "server"
    write_sd15(root / "models/checkpoints/base.safetensors")
    with serving(root, "cpu") as url:
        yield url


SETTINGS = """
name = "thing"
output = "{output}"
model.checkpoint = "nowhere/base.safetensors"
run = {{ steps = 2, resolution = 32, bucket_step = 8, dtype = "fp32", device = "cpu" }}
validation.share = 0.5
samples = {{ prompts = ["a thing"], every = 2, steps = 1 }}
data = [{{ folder = "pictures", trigger = "it's" }}]
"""


def test_a_training_that_lost_its_worker_goes_on(server: str, tmp_path: Path) -> None:
    (tmp_path / "server/input/things").mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 10, 10)).save(tmp_path / f"server/input/things/{number}.png")
    settings = "run = { steps = 60, resolution = 32, bucket_step = 8, dtype = 'fp32', save_every = 1 }"
    inputs = {"base": "base.safetensors", "pictures": "things", "name": "long", "settings": settings}
    workflow = {"1": {"class_type": "LoraloomTrainLora", "inputs": inputs}}
    jobs = ServerJobs(server)
    job = jobs.ask("/v1/jobs", {"workflow": workflow})["id"]

    def step() -> int:
        words = jobs.ask("/v1/workers")["workers"][0]["doing"].split()
        return int(words[2]) if len(words) > 3 else 0

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, jobs.ask(f"/v1/jobs/{job}")
            time.sleep(0.02)

    until(lambda: step() >= 5)
    (worker,) = [
        p for p in psutil.Process().children(recursive=True) if "loraloom.jobs.worker" in p.cmdline()
    ]
    worker.kill()
    until(lambda: jobs.ask(f"/v1/jobs/{job}")["attempts"] == 2 and step() > 0)
    assert step() >= 5, "it went on where it was"
    until(lambda: jobs.ask(f"/v1/jobs/{job}")["status"] not in ("pending", "running"))
    ended = jobs.ask(f"/v1/jobs/{job}")
    assert (ended["status"], ended["worker_deaths"]) == ("completed", 1), ended
    made = sorted((tmp_path / "server/output/training/long").iterdir())
    assert json.loads(next(p for p in made if p.suffix == ".json").read_text())["steps"] == 60


def test_a_sweep_is_trained_by_a_servers_worker_as_here(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        folder = tmp_path / "pictures/2_red thing"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (90 * number, 10, 10)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"number {number}")
    path = tmp_path / "settings.toml"
    path.write_text(SETTINGS.format(output="run"), "utf-8")
    asked = ["train", str(path), "--sweep", "adapter.rank=1,2,0", "--json", "--server", server]
    assert exit_code_of(asked) == 2, "a rank of 0 is refused before anything is queued"
    capsys.readouterr()
    asked[3] = "adapter.rank=1,2"
    assert exit_code_of(asked) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["status"] for run in runs] == ["done", "done"]
    there = sorted((tmp_path / "server/output/training").rglob("*.safetensors"))
    assert len(there) == 6
    made = sorted(p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*.*"))
    assert made == [
        name.replace("RANK", f"rank-{rank}")
        for rank in (1, 2)
        for name in (
            "RANK/loss.png", "RANK/result.json", "RANK/samples/thing-RANK-000002-00.png",
            "RANK/thing-RANK-best.safetensors", "RANK/thing-RANK.diffusers.safetensors",
            "RANK/thing-RANK.safetensors",
        )
    ]  # fmt: skip
    # The same trained here gives the same tensors: nothing was lost on the way there.
    text = SETTINGS.format(output="here").replace("nowhere", "server/models/checkpoints")
    path.write_text(text + "adapter.rank = 2\n", "utf-8")
    assert exit_code_of(["train", str(path)]) == 0
    found, wanted = TensorFile(Path(runs[1]["lora"])), TensorFile(tmp_path / "here/thing.safetensors")
    assert set(found.header.tensors) == set(wanted.header.tensors)
    for name in found.header.tensors:
        assert found.read(name).equal(wanted.read(name)), name
    capsys.readouterr()
    path.write_text(SETTINGS.format(output="run"), "utf-8")
    assert exit_code_of(asked) == 0, "what is done already is not queued again"
    assert sorted((tmp_path / "server/output/training").rglob("*.safetensors")) == there
    assert not [*(tmp_path / "server/user/training-jobs").rglob("*step-*.safetensors")]
    path.write_text(text.replace("base.safetensors", "other.safetensors"), "utf-8")
    assert exit_code_of(["train", str(path), "--server", server]) == 2
    assert "has no other.safetensors" in capsys.readouterr().err
