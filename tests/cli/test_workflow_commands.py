"""`validate`, `convert` and `nodes`, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from loraloom.cli.workflow_commands import convert_command, nodes_command, validate_command
from loraloom.errors import InputError

app = typer.Typer()
app.command("validate")(validate_command)
app.command("convert")(convert_command)
app.command("nodes")(nodes_command)

TEXT = {"class_type": "CLIPTextEncode", "inputs": {"text": "a", "clip": ["4", 1]}}
GRAPH: dict[str, Any] = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": TEXT,
    "7": TEXT,
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
            "seed": 1, "steps": 2, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
        },
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a page of two workflows and one checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    checkpoints = tmp_path / "models" / "checkpoints" / "sd"
    checkpoints.mkdir(parents=True)
    (checkpoints / "base.safetensors").write_bytes(b"")
    (tmp_path / "one.json").write_text(json.dumps(GRAPH))
    (tmp_path / "page.md").write_text(f"# First\n{json.dumps(GRAPH)}\n# Second\n{json.dumps({'1': TEXT})}\n")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_valid_workflow(folder: Path) -> None:
    result = run("validate", "one.json", "--models", "models")
    assert result.exit_code == 0
    assert "valid" in result.stderr
    assert "base.safetensors was found as sd/base.safetensors" in result.stderr


def test_a_missing_model_is_exit_code_3(folder: Path) -> None:
    result = run("validate", "one.json", "--models", "models", "--set", "4.ckpt_name=bases.safetensors")
    assert result.exit_code == 3
    for text in ("checkpoints", "bases.safetensors", "sd/base.safetensors", "CheckpointLoaderSimple"):
        assert text in result.stderr


def test_errors_are_exit_code_2_and_json_says_all(folder: Path) -> None:
    result = run("validate", "page.md", "--models", "models", "--json")
    assert result.exit_code == 2
    first, second = json.loads(result.stdout)["workflows"]
    assert (first["status"], first["title"], first["outputs"]) == ("valid", "First", ["9"])
    assert (second["status"], second["errors"][0]["type"]) == ("invalid", "prompt_no_outputs")


def test_convert_prints_api_json_with_changes(folder: Path) -> None:
    result = run("convert", "one.json", "--set", "KSampler.steps=9", "--seed", "7")
    assert result.exit_code == 0
    inputs = json.loads(result.stdout)["3"]["inputs"]
    assert (inputs["steps"], inputs["seed"], inputs["model"]) == (9, 7, ["4", 0])
    assert run("convert", "one.json", "-o", "out.json").stdout == ""
    assert json.loads((folder / "out.json").read_text()) == GRAPH


def test_several_workflows_ask_for_one(folder: Path) -> None:
    result = run("convert", "page.md")
    assert isinstance(result.exception, InputError)
    assert "1  First  (7 nodes)\n  2  Second  (1 nodes)" in str(result.exception)
    assert list(json.loads(run("convert", "page.md", "--workflow", "2").stdout)) == ["1"]
    assert len(json.loads(run("convert", "page.md", "--workflow", "all").stdout)) == 2


def test_standard_input(folder: Path) -> None:
    result = CliRunner().invoke(app, ["convert", "-"], input=json.dumps(GRAPH))
    assert json.loads(result.stdout) == GRAPH


def test_nodes_lists_and_shows(folder: Path) -> None:
    assert "KSamplerAdvanced" in run("nodes").stdout
    page = run("nodes", "ksampler").stdout
    for text in ("KSampler", "sampler_name", "dpmpp_2m", "0 … 18446744073709551615", "outputs: LATENT"):
        assert text in page
    assert "lora_name" in run("nodes", "Load LoRA").stdout
    assert json.loads(run("nodes", "KSampler", "--json").stdout)["KSampler"]["output"] == ["LATENT"]
    missing = run("nodes", "KSamplr")
    assert "Nearest: KSampler" in str(missing.exception)


def test_no_tensor_library_is_imported() -> None:
    script = (
        "import sys, loraloom.cli.workflow_commands\n"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env={"PYTHONPATH": "src"})
