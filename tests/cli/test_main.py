from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from loraloom import __version__
from loraloom.cli.main import COMMANDS, Command, application, exit_code_of
from loraloom.demo.files import LORAS, MODELS, WORKFLOW

GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 0xFF8000},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "orange"}},
}


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(GRAPH))
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_run_writes_the_pictures_and_prints_one_object(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["run", str(graph), "--json", "--set", "EmptyImage.width=16"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "done"
    assert [(o["node"], o["width"], o["height"]) for o in result["outputs"]] == [("2", 16, 8)] * 2
    assert all(Path(o["path"]).is_file() for o in result["outputs"])


def test_a_graph_is_checked_once(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loraloom.preparation import prepare

    checks: list[object] = []
    real = prepare.validate

    def counted(*arguments: Any, **options: Any) -> Any:
        checks.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(prepare, "validate", counted)
    assert exit_code_of(["run", str(graph)]) == 0
    assert len(checks) == 1


def test_a_picture_runs_again(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["run", str(graph)]) == 0
    assert exit_code_of(["run", "output/orange_00001_.png", "--json"]) == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert [Path(o["path"]).name for o in outputs] == ["orange_00003_.png", "orange_00004_.png"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"class_type": "NoSuchNode"}, 2, "NoSuchNode"),
        ({"inputs": {"images": ["1", 0], "filename_prefix": "../away"}}, 2, "leads out"),
        ({"inputs": {"images": ["9", 0], "filename_prefix": "x"}}, 2, "node 9"),
    ],
)
def test_bad_workflows_exit_with_2(
    graph: Path, change: dict[str, object], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    graph.write_text(json.dumps({**GRAPH, "2": {**GRAPH["2"], **change}}))
    assert exit_code_of(["run", str(graph)]) == code
    assert said in capsys.readouterr().err
    assert not list(graph.parent.rglob("*.png"))


def test_missing_models_exit_with_3_and_are_named(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": "sub\\my-vae.safetensors"}}
    decode = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["3", 0]}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "x"}}
    graph.write_text(json.dumps({**GRAPH, "3": loader, "4": decode, "5": save}))
    assert exit_code_of(["run", str(graph), "--models", "nowhere"]) == 3
    said = capsys.readouterr().err
    assert "missing: vae/sub/my-vae.safetensors" in said
    assert "note: --models nowhere: there is no such folder" in said
    assert exit_code_of(["run", str(graph), "--models", "nowhere", "--json"]) == 3
    missing = json.loads(capsys.readouterr().out)["error"]["missing"]
    assert [(m["node"], m["folder"]) for m in missing] == [("3", "vae")]


def test_a_lora_may_lie_anywhere_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(LORAS["pixel_art"].file, "mine.safetensors")
    options = ["--models", str(MODELS), "--set", "KSampler.steps=1", "--lora", "mine.safetensors:0.5"]
    assert exit_code_of(["run", str(WORKFLOW), *options, "--json"]) == 0
    receipts = json.loads(capsys.readouterr().out)["loras"]
    assert {r["name"]: r["strength_model"] for r in receipts}["mine.safetensors"] == 0.5


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "a", "b"], ["no-such-command"], ["run", "x", "--dtype", "q"]]
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert exit_code_of(arguments) == 2


def test_no_metadata_leaves_the_workflow_out(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["run", str(graph), "--no-metadata"]) == 0
    assert exit_code_of(["run", "output/orange_00001_.png"]) == 2
    assert "without a workflow" in capsys.readouterr().err


def test_light_commands_do_not_import_torch(graph: Path) -> None:
    program = (
        "import sys\n"
        "from loraloom.cli.main import exit_code_of\n"
        f"path = {str(graph)!r}\n"
        "for arguments in (['--help'], ['validate', path], ['convert', path], ['nodes'],\n"
        "                  ['run', '--help'], ['models', 'list'], ['run', 'no-such-file']):\n"
        "    exit_code_of(arguments)\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("arguments", [["demo"], ["lora", "inspect"]])
def test_ctrl_c_anywhere_is_130(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before a command has begun to listen for it."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("inspect")(interrupted)
    monkeypatch.setattr(Command, "load", lambda self: app if self.group else interrupted)
    assert exit_code_of(arguments) == 130
    assert capsys.readouterr().err.split() == ["stopped"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_of_a_command_what_its_own_help_says(name: str) -> None:
    command = COMMANDS[name]
    found = command.load()
    about = found.info.help if command.group else found.__doc__.split("\n")[0]
    assert about == command.about


def test_the_overview_and_completion_know_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert exit_code_of([]) == 2
    names = {c.name for c in application(None, complete=True).registered_commands}
    assert names | {name for name, command in COMMANDS.items() if command.group} == set(COMMANDS)
