"""The runner of `serve`: several jobs as rows of common batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loraloom.cli.worker import SessionRunner, make_runner
from loraloom.demo.files import MODELS, WORKFLOW
from loraloom.engine.events import Event, NodeFinished, NodeNote, NodeProgress, RunCancelled, RunFailed
from loraloom.jobs.job import Request
from loraloom.models.computing import USUAL
from loraloom.models.encoder import encoder_kinds
from loraloom.models.recognition import families
from loraloom.session import Session

SOURCE = Path(__file__).parents[2] / "src"


def worker_settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "models": [str(MODELS)],
        "output_dir": str(tmp_path / "output"),
        "input_dir": str(tmp_path),
        "temp_dir": str(tmp_path / "temp"),
        "training_dir": str(tmp_path / "training"),
        "device": "cpu",
        "dtype": "fp32",
        "storage": "native",
        "computing": asdict(USUAL),
        "compat": "trainer",
        "cache": "classic",
        "cache_size": 100,
        "strict_lora": False,
        "vram": None,
        **dict.fromkeys(("custom_nodes", "extra_model_paths"), ()),
    }


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[SessionRunner]:
    found = make_runner(worker_settings(tmp_path))
    yield found
    found.free(models=True, results=True)


def test_a_worker_imports_networks_before_its_first_job_and_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import json, sys, threading\n"
        "from loraloom.cli.worker import make_runner\n"
        "runner = make_runner(json.loads(sys.argv[1]))\n"
        "[t.join(120) for t in threading.enumerate() if t.name == 'loraloom-imports']\n"
        "print(json.dumps([sorted(sys.modules), runner._session.memory.resident_kinds]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(worker_settings(tmp_path))],
        stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    modules, resident = json.loads(done.stdout)
    wanted = {family.module.path for family in families()} | {
        path for kind in encoder_kinds().values() for path in kind.classes
    }
    assert {path.partition(":")[0] for path in wanted} <= set(modules)
    assert not resident and not {"accelerate", "peft", "scipy", "torch._dynamo"} & set(modules)


def requests(strengths: list[float], steps: int) -> list[Request]:
    with Session(MODELS) as session:
        return [
            Request(
                session.prepare(
                    WORKFLOW,
                    set={
                        "LoraLoader.strength_model": strength,
                        "KSampler.steps": steps,
                        "EmptyLatentImage.width": 64,
                        "EmptyLatentImage.height": 64,
                        "SaveImage.filename_prefix": f"row-{number}",
                    },
                    seed=3,
                ).to_api()
            )
            for number, strength in enumerate(strengths)
        ]


def test_each_job_has_its_picture_its_receipt_its_progress_and_its_end(
    runner: SessionRunner, tmp_path: Path
) -> None:
    asked = requests([0.0, 0.5, 1.0, 0.8, 0.3], steps=3)
    broken = {**asked[3].prompt}
    sampler = next(key for key, node in broken.items() if node["class_type"] == "KSampler")  # type: ignore
    del broken[sampler]
    asked[3] = replace(asked[3], prompt=broken)
    cancels = [threading.Event() for _ in asked]
    seen: defaultdict[int, list[Event]] = defaultdict(list)
    for number, event in runner.run_together(asked, cancels, 8):
        seen[number].append(event)
        if number == 4 and isinstance(event, NodeProgress):
            cancels[4].set()
    assert isinstance(seen[3][-1], RunFailed) and isinstance(seen[4][-1], RunCancelled)
    files = {path.name: path for path in (tmp_path / "output").iterdir()}
    assert sorted(files) == [f"row-{number}_00001_.png" for number in range(3)]
    for number, strength in enumerate((0.0, 0.5, 1.0)):
        notes = [event for event in seen[number] if isinstance(event, NodeNote)]
        assert [n.payload["strength_model"] for n in notes if n.kind == "lora"] == [strength]  # type: ignore
        (batch,) = [note.payload for note in notes if note.kind == "batch"]
        assert isinstance(batch, dict) and batch["rows"] == 4
        assert [e.value for e in seen[number] if isinstance(e, NodeProgress)] == [1, 2, 3]
        (saved,) = [e for e in seen[number] if isinstance(e, NodeFinished) and e.ui]
        assert saved.ui["images"][0]["filename"] == f"row-{number}_00001_.png"  # type: ignore
    runner.free(models=False, results=True)
    for event in runner.run(requests([0.5], steps=3)[0], threading.Event()):
        assert not isinstance(event, RunFailed)
    with (
        Image.open(files["row-1_00001_.png"]) as together,
        Image.open(tmp_path / "output/row-0_00002_.png") as alone,
    ):
        assert np.abs(np.asarray(together, int) - np.asarray(alone, int)).max() <= 1


def test_a_worker_leaves_no_folder_behind_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when the server stops; temporary pictures are where the server says, and stay."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))
    (tmp_path / "system").mkdir()
    settings = worker_settings(tmp_path)
    runner = make_runner(settings)
    try:
        assert not list((tmp_path / "system").iterdir())
        Path(settings["temp_dir"]).mkdir(exist_ok=True)
    finally:
        runner.free(models=True, results=True)
    assert Path(settings["temp_dir"]).is_dir()
