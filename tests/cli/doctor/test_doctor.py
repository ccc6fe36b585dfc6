"""`loraloom doctor` on this machine, and its judgement of machines that are not at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

import loraloom
from loraloom.cli.doctor import devices, machine, packages
from loraloom.cli.doctor.devices import Asked, broken, judged
from loraloom.cli.doctor.finding import Finding
from loraloom.cli.main import exit_code_of
from loraloom.folders import model_folders

GIB = 1 << 30
SOURCE = Path(loraloom.__file__).parent.parent


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.about: finding.level for finding in findings}


def cpu(**changed: Any) -> dict[str, Any]:
    return {"name": "cpu", "bfloat16": False, "fault": None, **changed}


def card(**changed: Any) -> dict[str, Any]:
    memory = {"title": "NVIDIA GeForce RTX 4090", "total": 24 * GIB, "free": 23 * GIB}
    return {"name": "cuda:0", "bfloat16": True, "fault": None, **memory, **changed}


def said(*found: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "version": "2.13.0+cu130",
        "build": "CUDA 13.0",
        "seconds": 2.0,
        "threads": 64,
        "cpu": "AVX2",
        "auto": found[-1]["name"].partition(":")[0],
        "devices": list(found),
        "refused": None,
        "torchvision": None,
        **changed,
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORALOOM_MODELS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    return tmp_path


def test_this_installation_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "models/loras").mkdir(parents=True)
    (place / "models/loras/a.safetensors").touch()
    assert exit_code_of(["doctor", "--json", "--models", "models"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["loraloom"] == loraloom.__version__
    assert found["torch"]["devices"][0] == {**found["torch"]["devices"][0], "name": "cpu", "fault": None}
    texts = {entry["about"]: entry["text"] for entry in found["findings"]}
    assert "1 loras" in texts["models"]
    assert found["torch"]["version"] in texts["torch"]
    assert not any(place.glob("output")), "a look leaves nothing behind"


def test_without_torch_it_answers_at_once_and_imports_none(place: Path) -> None:
    program = (
        "import sys\n"
        "from loraloom.cli.main import exit_code_of\n"
        "code = exit_code_of(['doctor', '--no-torch'])\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Everything works" in done.stdout
    assert "torch:" not in done.stdout


def test_a_place_that_cannot_be_written_is_a_problem(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").touch()
    assert exit_code_of(["doctor", "--no-torch", "--output-dir", "file/output"]) == 1
    shown = capsys.readouterr().out
    assert "problem  output: nothing can be written" in shown
    assert "--output-dir" in shown


def test_a_torch_that_breaks_is_reported_and_not_met(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A torch earlier on the path whose import fails as a damaged installation's does."""
    (place / "torch").mkdir()
    (place / "torch/__init__.py").write_text(
        "raise OSError('libcudart.so.13: cannot open shared object file')"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(SOURCE)]))
    assert exit_code_of(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "problem  torch: torch cannot be used: OSError: libcudart.so.13" in shown
    assert "parts of CUDA are missing" in shown


@pytest.mark.parametrize(
    ("body", "words"),
    [("import time; time.sleep(60)", "within"), ("import os; os.abort()", "ended with")],
)
def test_a_torch_that_hangs_or_crashes(
    place: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    (place / "torch.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(SOURCE)]))
    begun = time.monotonic()
    found = Asked().answer(3.0)
    assert isinstance(found, Finding)
    assert found.level == "problem" and words in found.text
    assert time.monotonic() - begun < 30


def test_windows_without_its_runtime() -> None:
    error = (
        "OSError: [WinError 126] The specified module could not be found. Error loading torch\\lib\\c10.dll"
    )
    assert "Visual C++" in str(broken(error, 1).advice)


def test_a_good_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_kernels", lambda: True)
    assert levels(judged(said(cpu(), card()), {"nvidia"})) == {
        "torch": "ok",
        "device cpu": "ok",
        "device cuda:0": "ok",
    }


@pytest.mark.parametrize(
    ("facts", "makers", "about", "level", "words"),
    [
        (said(cpu(), build="CPU"), {"nvidia"}, "speed", "slow", "a card for CUDA is here"),
        (said(cpu(), build="CUDA 13.0"), {"amd"}, "speed", "slow", "a card for ROCm is here"),
        (said(cpu(), refused="driver too old"), {"nvidia"}, "speed", "slow", "driver too old"),
        (said(cpu(), build="CPU"), set[str](), "speed", "slow", "minutes to hours"),
        (said(cpu(), threads=0), set[str](), "threads", "slow", "torch uses 0"),
        (
            said(cpu(), card(fault="no kernel image")),
            set[str](),
            "device cuda:0",
            "problem",
            "no kernel image",
        ),
        (said(cpu(), card(bfloat16=False)), set[str](), "device cuda:0", "slow", "float32 is used"),
        (said(cpu(), card(free=4 * GIB)), set[str](), "device cuda:0", "slow", "other programs hold 20 GB"),
        (said(cpu(), card(total=4 * GIB, free=4 * GIB)), set[str](), "device cuda:0", "slow", "4.0 GB are"),
        (said(cpu(), card()), set[str](), "kernels", "slow", "comfy-kitchen"),
        (said(cpu(), torchvision="operator torchvision::nms"), set[str](), "torchvision", "problem", "nms"),
    ],
)
def test_what_is_slow_or_broken_and_why(
    facts: dict[str, Any],
    makers: set[str],
    about: str,
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_has_kernels", lambda: False)
    found = [finding for finding in judged(facts, makers) if finding.about == about]
    assert (found[-1].level, bool(found[-1].advice)) == (level, True)
    assert words in found[-1].text


def test_packages_that_are_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "CLONE", tmp_path)
    asked = [
        "rich>=13",
        "no-such-package>=1",
        "typer>=900",
        'pytest; extra == "dev"',
        'nothing; extra == "ui"',
    ]
    found = packages.judged([Requirement(line) for line in asked], ["dev", "ui", "empty"])
    assert found.extras == {"dev": True, "ui": False}
    assert found.required["no-such-package"] is None
    problem, *rest = found.findings
    assert (problem.level, problem.advice) == ("problem", 'pip install "no-such-package>=1" "typer>=900"')
    assert "no-such-package is not installed" in problem.text and "typer is" in problem.text
    ui = next(finding for finding in rest if finding.about == "extra ui")
    assert (ui.level, ui.advice) == ("note", 'pip install "loraloom[ui]"')


def test_a_tool_of_uv_is_told_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uv-receipt.toml").touch()
    monkeypatch.setattr(packages.sys, "prefix", str(tmp_path))
    found = packages.judged([Requirement("typer>=900"), Requirement('nothing; extra == "ui"')], ["ui"])
    advice = [finding.advice for finding in found.findings[:2]]
    assert advice == ["uv tool install --reinstall loraloom", 'uv tool install "loraloom[ui]"']


def test_a_clone_is_told_its_own_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/setup").touch()
    monkeypatch.setattr(packages, "CLONE", tmp_path)
    monkeypatch.setattr(packages.sys, "prefix", str(tmp_path / ".venv"))
    found = packages.judged([Requirement("typer>=900"), Requirement('nothing; extra == "ui"')], ["ui"])
    advice = [finding.advice for finding in found.findings[:2]]
    assert advice == ['.venv/bin/pip install "typer>=900"', "scripts/setup ui"]
    assert packages.install("cuda") == "scripts/setup cuda"


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in machine.python()] == ["ok"]
    monkeypatch.setattr(machine, "translated", lambda: True)
    assert [f.level for f in machine.python()] == ["slow"]
    monkeypatch.setattr(machine, "OLDEST", (9, 0))
    assert [f.level for f in machine.python()] == ["problem"]


def test_memory_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert machine.container_memory(tmp_path) == 2 * GIB
    assert machine.container_memory(tmp_path / "none") is None
    (found,) = machine.memory(2 * GIB)
    assert found.level == "slow" and "this container's share" in found.text


def test_models_on_a_drive_of_another_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in machine.models(model_folders(None))] == ["note"]
    (place / "models/loras").mkdir(parents=True)
    (place / "models/loras/a.safetensors").touch()
    assert machine.file_system(place) != ""
    monkeypatch.setattr(machine, "file_system", lambda path: "nfs4")  # pyright: ignore[reportUnknownLambdaType]
    assert [f.level for f in machine.models(model_folders(None))] == ["ok", "slow"]


def test_forgotten_variables() -> None:
    assert machine.brakes({"CUDA_LAUNCH_BLOCKING": "0"}) == []
    assert levels(machine.brakes({"CUDA_LAUNCH_BLOCKING": "1"})) == {"CUDA_LAUNCH_BLOCKING": "slow"}


def test_the_limit_of_paths_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a registry that says what Windows' own may say."""
    assert machine.limits_paths() is False
    registry = {"LongPathsEnabled": (0, 4)}
    said = SimpleNamespace(
        HKEY_LOCAL_MACHINE=1,
        OpenKey=lambda root, path: nullcontext(path),  # pyright: ignore[reportUnknownLambdaType]
        QueryValueEx=lambda key, name: registry[name],  # pyright: ignore[reportUnknownLambdaType]
    )
    monkeypatch.setitem(sys.modules, "winreg", said)  # type: ignore[arg-type]
    monkeypatch.setattr(machine.sys, "platform", "win32")
    assert [f.level for f in machine.long_paths(machine.limits_paths())] == ["note"]
    registry["LongPathsEnabled"] = (1, 4)
    assert machine.long_paths(machine.limits_paths()) == []
