"""Training as a node: what it refuses, that it goes on where it was, and where its files go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from loraloom.engine.likeness import likeness
from loraloom.errors import Cancelled, InputError
from loraloom.file_lock import try_lock
from loraloom.nodes.training import train_lora
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.implemented import implemented_schemas
from tests.nodes.runs import PlainRun
from tests.tiny_models import write_sd15

SETTINGS = """
adapter.rank = 2
run = { steps = 4, resolution = 32, bucket_step = 8, dtype = "fp32", save_every = 1 }
"""


class StoppedAt(PlainRun):
    """A run that is stopped after some steps."""

    last = -1
    cancelled = False

    def check_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled("stopped")

    def progress(self, value: float, total: float, preview: object | None = None) -> None:
        super().progress(value, total, preview)
        if value == self.last:
            raise Cancelled("stopped")


@pytest.fixture
def run(tmp_path: Path) -> StoppedAt:
    write_sd15(tmp_path / "models/checkpoints/base.safetensors")
    folder = tmp_path / "input/things"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 10, 10)).save(folder / f"{number}.png")
    return StoppedAt(tmp_path)


def trained(run: PlainRun, settings: str = SETTINGS, **more: Any) -> list[dict[str, Any]]:
    with torch.inference_mode():  # as workers run nodes
        told = {"base": "base.safetensors", "pictures": "things", "name": "thing", "settings": settings}
        result: Any = train_lora(**{**told, **more}, run=run)
    return result.ui["files"]


def test_what_was_stopped_goes_on_and_its_states_go_in_the_end(run: StoppedAt, tmp_path: Path) -> None:
    run.last = 2
    with pytest.raises(Cancelled, match="goes on"):
        trained(run)
    (states,) = (tmp_path / "training").glob("*/run/states")
    assert len([*states.iterdir()]) == 2 and not (tmp_path / "output").exists()
    run.last, run.steps = -1, []
    files = trained(run)
    assert [step for step, _ in run.steps] == [2, 3, 4]
    names = [file["filename"] for file in files]
    assert names[0] == "thing_00001_.safetensors" and "result_00001_.json" in names
    assert {(file["subfolder"], file["type"]) for file in files} == {("training/thing", "output")}
    assert all((tmp_path / "output/training/thing" / name).is_file() for name in names)
    assert not states.exists()


def test_other_settings_begin_anew(run: StoppedAt) -> None:
    run.last = 2
    with pytest.raises(Cancelled):
        trained(run)
    run.last, run.steps = -1, []
    trained(run, SETTINGS.replace("rank = 2", "rank = 1"))
    assert run.steps[0][0] == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("x", "not TOML"),
        ('output = "/etc"', "settings.output is for an input"),
        ('cache = "/etc"', "settings.cache is for an input"),
        ('data = [{ folder = "../../models" }]', "leads out of its folder"),
        ('data = [{ folder = "/etc" }]', "no relative file name"),
        ("data = 3", "data is 3; expected a list"),
        ("run = 3", "run is 3; expected a table"),
        ("adapter.rnak = 3", "did you mean 'rank'?"),
        ('adapter.start = "/etc/passwd"', "/etc/passwd"),
        ('adapter.start = "../checkpoints/base.safetensors"', "../checkpoints/base.safetensors"),
        ("adapter.start = 3", "'3' is not in the loras folder"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(run: StoppedAt, settings: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        trained(run, settings)
    assert said in str(raised.value)


def test_names_that_lead_elsewhere_are_refused(run: StoppedAt, tmp_path: Path) -> None:
    for name in ("../thing", "a/b", "", ".."):
        with pytest.raises(InputError):
            trained(run, name=name)
    for pictures in ("..", "../models", "nothing", "/etc"):
        with pytest.raises(InputError):
            trained(run, pictures=pictures)
    assert not (tmp_path / "thing").exists()


def test_who_waits_for_another_training_of_its_folder_can_be_stopped(run: StoppedAt, tmp_path: Path) -> None:
    run.last = 2
    with pytest.raises(Cancelled):
        trained(run)
    (lock,) = (tmp_path / "training").glob("*/.lock")
    with open(lock, "ab") as other:
        assert try_lock(other)
        run.last, run.steps, run.cancelled = -1, [], True
        with pytest.raises(Cancelled):
            trained(run)
    assert not run.steps


def test_trainings_never_run_together() -> None:
    inputs: dict[str, Any] = {"base": "b", "pictures": "p", "name": "n", "settings": ""}
    graph = parse_api({"1": {"class_type": "LoraloomTrainLora", "inputs": inputs}})
    assert likeness(graph, implemented_schemas()) is None
