"""`pip install` of the built distributions in empty environments: the commands work, away from this tree.

Needs the package index, a gigabyte of disk, and minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import httpx
import pytest
from PIL import Image

from loraloom import __version__
from tests.installation.built import ROOT, Built, build
from tests.server.running import RunningServer, drain

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"))


class Installed:
    """An environment of its own, and commands in it: nothing of this tree or of this process's path."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=True)
        self.programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        self.place = folder / "place"
        self.place.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LORALOOM"))}
        self.environment = {**kept, "OMP_NUM_THREADS": "1"}

    def pip(self, *arguments: str) -> None:
        self._done(
            ["python", "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *arguments]
        )

    def loraloom(self, *arguments: str) -> str:
        return self._done(["loraloom", *arguments])

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(self.programs / "loraloom"), *arguments]
        return subprocess.Popen(
            command, cwd=self.place, env=self.environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def _done(self, command: list[str]) -> str:
        command = [str(self.programs / command[0]), *command[1:]]
        done = subprocess.run(
            command, cwd=self.place, env=self.environment, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an empty environment."""
    found = Installed(tmp_path_factory.mktemp("installed"))
    found.pip(str(built.wheel))
    return found


def test_the_installation_is_whole(installed: Installed) -> None:
    assert __version__ in installed.loraloom("--version")
    found = json.loads(installed.loraloom("doctor", "--json"))
    assert found["ok"] is True
    assert None not in found["packages"].values() and len(found["packages"]) > 20
    assert found["extras"]["ui"] is False


def test_demo(installed: Installed) -> None:
    told = json.loads(installed.loraloom("demo", "a cat", "--json"))
    pictures = [run["outputs"][0]["path"] for run in told["runs"].values()]
    for path in (*pictures, told["sheet"]):
        with Image.open(installed.place / path) as picture:
            picture.load()
    assert "site-packages" in _demo_models(installed)


def test_run_a_picture_again(installed: Installed) -> None:
    (picture,) = sorted((installed.place / "demo-output").glob("with-*.png"))[:1]
    told = json.loads(installed.loraloom("run", str(picture), "--models", _demo_models(installed), "--json"))
    assert told["status"] == "done" and told["loras"][0]["matched"] > 0


def test_train(installed: Installed) -> None:
    folder = installed.place / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 10, 10)).save(folder / f"{number}.png")
    base = next((Path(_demo_models(installed)) / "checkpoints").iterdir())
    told = installed.loraloom(
        "train", "--data", "pictures", "--base", str(base), "--steps", "1", "--resolution", "64", "--json"
    )  # fmt: skip
    assert (installed.place / json.loads(told)["lora"]).is_file()


@pytest.fixture
def server(installed: Installed) -> Iterator[RunningServer]:
    process = installed.start("serve", "--port", "0", "--models", _demo_models(installed))
    stderr = cast("IO[str]", process.stderr)
    url = next(line.split()[-1] for line in stderr if "listens on" in line)
    errors = threading.Thread(target=drain, args=(stderr,), daemon=True)
    errors.start()
    yield (running := RunningServer(process, url, installed.place, httpx.Client(base_url=url), 0, errors))
    running.end()


def test_serve(installed: Installed, server: RunningServer) -> None:
    assert "<title>" in server.http.get("/").text
    assert server.http.get("/loraloom/app.js").status_code == 200
    workflow = Path(_demo_models(installed)).parent / "workflow.json"
    job = server.submit(json.loads(installed.loraloom("convert", str(workflow))))
    assert server.history(job, 300)["status"]["status_str"] == "success"


def test_the_source_distribution_gives_the_same(built: Built, installed: Installed) -> None:
    """Built by pip in an environment of its own, and put in place of the wheel's."""
    before = _files(installed)
    installed.pip("--force-reinstall", "--no-deps", str(built.sdist))
    assert _files(installed) == before
    assert json.loads(installed.loraloom("doctor", "--json"))["ok"] is True


def _files(installed: Installed) -> set[str]:
    package = Path(_demo_models(installed)).parents[2]
    return {
        p.relative_to(package).as_posix() for p in package.rglob("*") if p.suffix != ".pyc" and p.is_file()
    }


def _demo_models(installed: Installed) -> str:
    asked = "from loraloom.demo.files import MODELS; print(MODELS)"
    python = [str(installed.programs / "python"), "-c", asked]
    return subprocess.run(
        python, cwd=installed.place, env=installed.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
