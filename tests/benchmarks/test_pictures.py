"""`benchmarks/pictures.py`: its table, and the programs beside which it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import pictures_peers as peers  # noqa: E402  # pyright: ignore[reportMissingImports]
from pictures_cases import CASES, Z_IMAGE  # noqa: E402  # pyright: ignore[reportMissingImports]

PROGRAM = """#!{python}
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
for short in ("-m", "-p", "-n", "-W", "-H", "-o", "-t"):
    parser.add_argument(short)
for long in ("diffusion-model", "vae", "llm", "lora-model-dir", "steps", "seed", "cfg-scale", "flow-shift",
             "sampling-method", "scheduler"):
    parser.add_argument("--" + long)
given = parser.parse_args()
for path in (given.m, given.diffusion_model, given.vae, given.llm, given.lora_model_dir):
    if path is not None and not pathlib.Path(path).exists():
        sys.exit(path + " is not there")
pathlib.Path(given.o).write_bytes(b"a picture")
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(vars(given)))
"""
"""Takes the options of stable-diffusion.cpp that a Z-Image workflow needs."""

SERVER = """
import os, sys
def after(option):
    return sys.argv[sys.argv.index(option) + 1]
words = [sys.executable, "-m", "loraloom", "serve", "--no-frontend", "--device", "cpu"]
words += ["--port", after("--port"), "--extra-model-paths", after("--extra-model-paths-config")]
words += [word for option in ("user", "output") for word in ("--" + option + "-dir", {folder!r})]
os.execv(sys.executable, [*words, "--models", {folder!r}])
"""
"""Has ComfyUI's interface, because Loraloom has it."""


def z_image_files(root: Path) -> Path:
    for name in (
        "diffusion_models/z_image_turbo_bf16", "text_encoders/qwen_3_4b", "vae/ae", "loras/z_image_style",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.safetensors").touch()
    return root


def program(folder: Path) -> Path:
    path = folder / "sd"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a script with a first line")
def test_a_program_is_told_what_the_workflow_says(tmp_path: Path) -> None:
    models, path = z_image_files(tmp_path), program(tmp_path)
    assert peers.drawn(str(path), models, Z_IMAGE)["first picture"] > 0
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["llm"].endswith("qwen_3_4b.safetensors") and told["m"] is None
    assert told["p"] == "a red fox in the snow<lora:z_image_style:1.0>" and told["n"] == "blurry"
    wanted = {"W": "1024", "steps": "2", "cfg_scale": "1.0", "flow_shift": "3.0", "scheduler": "simple"}
    assert wanted.items() <= told.items() and told["sampling_method"] == "euler"
    words = f"{path} --steps {{steps}} --llm {{llm}} -p {{positive}} -o {{output}}"
    assert peers.drawn(words, models, Z_IMAGE)["first picture"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a script with a first line")
def test_a_program_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not there"):
        peers.drawn(str(program(tmp_path)), tmp_path, Z_IMAGE)


def test_comfyui_is_started_with_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no main\.py"):
        peers.comfyui_command(tmp_path, tmp_path, tmp_path / "paths.yaml")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    models = tmp_path / "models"
    CASES["sd15"].write(models)
    (tmp_path / "main.py").write_text(SERVER.format(folder=str(tmp_path / "served")))
    command = peers.comfyui_command(tmp_path, models, tmp_path / "paths.yaml")
    found: Mapping[str, float] = peers.served(command, models, small_sd15(models))
    assert 0 < found["ready"] < found["first picture"] and found["second picture"] > 0


def small_sd15(models: Path) -> dict[str, Any]:
    from loraloom.session import Session

    case = CASES["sd15"]
    small = ["EmptyLatentImage.width=64", "EmptyLatentImage.height=64", "KSampler.steps=1"]
    with Session(models) as session:
        return session.prepare(case.source, workflow=case.number, set=small).to_api()


def test_the_table_beside_diffusers() -> None:
    small = ("EmptyLatentImage.width=64", "EmptyLatentImage.height=64", "KSampler.steps=2")
    words = [word for change in small for word in ("--set", change)]
    command = [sys.executable, str(ROOT / "benchmarks/pictures.py"), "--case", "sd15", "--rounds", "1"]
    done = subprocess.run([*command, "--diffusers", *words], stdout=subprocess.PIPE, text=True, check=True)
    rows = {line[:32].strip(): line[32:].split() for line in done.stdout.splitlines() if line[32:].strip()}
    for part in ("text", "step", "decode"):
        assert float(rows[f"{part}: share of the peak"][0]) > 0
    assert float(rows["step: distance from ours"][1]) < 1e-4
    assert float(rows["decode: distance from ours"][1]) < 1e-3
