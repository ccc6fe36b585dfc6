"""What a training's folder says: its settings file, its numbers, where its LoRA lands."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from tests.server.running import ROOT
from tests.tiny_models import write_sd15

from loraloom.errors import InputError
from loraloom.server.trainings import Plan, Trainings, land, steps_of, toml_of
from loraloom.training.settings import Settings
from loraloom.training.toml import read_toml

PLAN = Plan(
    name="my thing", base="/models/a \"b\" \\ c.safetensors", base_name="a.safetensors", folder="/pictures/ü",
    folder_name="ü", land_in="/loras", trigger='tr"g\n\x7f', prompts=("one", 'two "quoted"'),
)  # fmt: skip


def test_the_settings_file_says_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(toml_of(PLAN), "utf-8")
    read = read_toml(path, Settings)
    assert (str(read.model.checkpoint), read.name) == (PLAN.base, PLAN.name)
    assert (str(read.data[0].folder), read.data[0].trigger) == (PLAN.folder, PLAN.trigger)
    assert read.samples.prompts == PLAN.prompts
    assert (read.adapter.rank, read.optimizer.rate) == (16, 1e-4)
    assert tomllib.loads(toml_of(PLAN))["run"]["steps"] == 1000


def line(step: int, loss: float, **more: float) -> str:
    return json.dumps({"step": step, "steps": 9, "loss": loss, **more}) + "\n"


def test_steps_that_were_done_twice_count_once(tmp_path: Path) -> None:
    text = line(1, 1.0) + line(2, 2.0, validation=5.0) + line(3, 9.0) + line(2, 0.5) + '{"step": 3, "lo'
    (tmp_path / "steps.jsonl").write_text(text)
    losses, validations, last = steps_of(tmp_path)
    assert losses == [[1, 1.0], [2, 0.5]]
    assert validations == [[2, 5.0]]
    assert last["step"] == 2


def test_many_steps_become_means(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text("".join(line(i, float(i)) for i in range(1, 1001)))
    losses, _, _ = steps_of(tmp_path, most=100)
    assert len(losses) == 100
    assert losses[0] == [10, 5.5]
    assert steps_of(tmp_path / "none") == ([], [], {})


def test_a_lora_lands_beside_what_is_there(tmp_path: Path) -> None:
    run, loras = tmp_path / "run", tmp_path / "loras"
    (run / "samples").mkdir(parents=True)
    (run / "x.safetensors").write_bytes(b"new")
    for step in (5, 10):
        (run / "samples" / f"x-{step:06d}-00.png").write_bytes(str(step).encode())
    loras.mkdir()
    (loras / "x.safetensors").write_bytes(b"old")
    plan = Plan("x", "", "", "", "", str(loras))
    assert land(plan, run) == "x 2.safetensors"
    assert (loras / "x.safetensors").read_bytes() == b"old"
    assert (loras / "x 2.preview.png").read_bytes() == b"10"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", ".hidden", "x" * 61, "end.", "nul\0", "con", "NUL.x", "lpt1"]
)
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        Trainings(tmp_path, lambda kind, data: None).folder(name)


def test_a_run_that_the_server_left_has_stopped(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "state.json").write_text('{"status": "running", "started": 5}')
    state = Trainings(tmp_path, lambda kind, data: None).state("x")
    assert (state.status, state.started) == ("stopped", 5)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A run on a tiny model that would take long."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32), "red").save(pictures / "a.png")
    base = write_sd15(tmp_path / "base.safetensors")
    return Plan(
        "long", str(base), base.name, str(pictures), "pictures", str(tmp_path / "loras"),
        steps=1_000_000, resolution=32, rank=1, dtype="fp32",
    )  # fmt: skip


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """Whose runs are children with this code."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return Trainings(tmp_path / "trainings", lambda kind, data: None)


async def wait_for_steps(trainings: Trainings, name: str, more_than: int) -> int:
    until = time.monotonic() + 200
    while time.monotonic() < until and trainings.state(name).status == "running":
        _, _, last = steps_of(trainings.folder(name))
        if last.get("step", 0) > more_than:
            return int(last["step"])
        await asyncio.sleep(0.1)
    raise AssertionError(trainings.state(name))


async def ended(trainings: Trainings, name: str, seconds: float = 100) -> str:
    until = time.monotonic() + seconds
    while trainings.state(name).status == "running" and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return trainings.state(name).status


def test_a_run_stops_behind_its_step_and_goes_on_without_any_signal(trainings: Trainings, plan: Plan) -> None:
    """The end of its input is all that tells it to stop: so it does on Windows, too."""

    async def run() -> None:
        await trainings.start(plan)
        await trainings.stop("long")  # while it is still importing
        assert await ended(trainings, "long") == "stopped", trainings.state("long").error
        await trainings.resume("long")
        step = await wait_for_steps(trainings, "long", 0)
        await trainings.stop("long")
        assert await ended(trainings, "long") == "stopped"
        assert list((trainings.folder("long") / "run" / "states").glob("*.safetensors"))
        await trainings.resume("long")
        await wait_for_steps(trainings, "long", step)
        await trainings.close()
        assert trainings.state("long").status == "stopped"

    asyncio.run(run())


def test_a_run_stops_whose_server_ignores_interrupts(trainings: Trainings, plan: Plan) -> None:
    """As a server does that a script started in the background, and its children with it."""

    async def run() -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            await trainings.start(plan)
        finally:
            signal.signal(signal.SIGINT, before)
        await trainings.stop("long")
        assert await ended(trainings, "long", 30) == "stopped", trainings.state("long").error
        await trainings.close()

    asyncio.run(run())
