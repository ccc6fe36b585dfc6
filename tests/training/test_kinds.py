"""One training kind is one file: settings know it, it is trained and written without an edit elsewhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import loraloom.training
from loraloom.errors import InputError
from loraloom.lora.file import read_lora
from loraloom.lora.inspect import page_of
from loraloom.training import kinds as package
from loraloom.training.adapters import inject, written
from loraloom.training.kind import kinds
from loraloom.training.session import _left_out, open_session  # pyright: ignore[reportPrivateUsage]
from loraloom.training.settings import AdapterSettings, Settings
from loraloom.training.toml import parse
from loraloom.training.train import train

from .conftest import MakeSettings

FOLDER = Path(loraloom.training.__file__).parent

RSLORA = '''
"""rsLoRA: alpha over the root of the rank."""

from peft import LoraConfig

from loraloom.training.kind import LowRankKind


class RsLora(LowRankKind):
    name = "rslora"
    algorithm = "rank-stabilised"

    def config(self, given, alpha, settings):
        return LoraConfig(**given, lora_alpha=alpha, use_rslora=True)


KIND = RsLora()
'''


@pytest.fixture
def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are kinds too."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    kinds.cache_clear()
    yield folder
    kinds.cache_clear()
    for path in folder.glob("*.py"):
        sys.modules.pop(f"{package.__name__}.{path.stem}", None)


def test_adding_a_kind_touches_one_file(more: Path, make_settings: MakeSettings) -> None:
    (more / "rslora.py").write_text(RSLORA, "utf-8")
    trained = train(make_settings(AdapterSettings("rslora", rank=2, alpha=1.0), steps=1))
    file = read_lora(trained.lora)
    assert page_of(file).algorithms.keys() == {"LoRA"} and trained.diffusers is not None
    assert "rank-stabilised" in file.metadata["ss_network_args"]


def test_two_kinds_of_one_name_are_refused(more: Path) -> None:
    (more / "second.py").write_text(RSLORA.replace('"rslora"', '"lokr"'), "utf-8")
    with pytest.raises(ValueError, match=r"called 'lokr': .*Lokr.*RsLora"):
        kinds()


def test_an_unknown_kind_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'dora', 'locon', 'loha', 'lokr' or 'lora'"):
        AdapterSettings("lorra")
    stated = {"name": "x", "output": "o", "model": {"checkpoint": "c"}, "data": [{"folder": "d"}]}
    with pytest.raises(
        InputError, match="adapter.kind is 'lorra'; choose one of dora, locon, loha, lokr or lora"
    ):
        parse(stated | {"adapter": {"kind": "lorra"}}, Settings, tmp_path)
    with pytest.raises(InputError, match="adapter.kind is 3; expected a value of type str"):
        parse(stated | {"adapter": {"kind": 3}}, Settings, tmp_path)


def test_a_setting_of_another_kind_is_refused() -> None:
    assert AdapterSettings("lokr", factor=4).factor == 4
    with pytest.raises(InputError, match=r"adapter\.factor is for lokr; adapter\.kind is loha"):
        AdapterSettings("loha", factor=4)


def test_no_other_file_names_a_kind() -> None:
    names = set(kinds()) - {AdapterSettings().kind}  # the default is named by the settings
    named = [
        f"{path.name}:{node.lineno}"
        for path in sorted(FOLDER.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert named == [] and {"dora", "loha", "lokr"} <= names


def test_every_file_of_the_folder_is_one_kind_of_its_name() -> None:
    assert {path.stem for path in (FOLDER / "kinds").glob("*.py")} - {"__init__"} == kinds().keys()


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys\nfrom loraloom.training.settings import AdapterSettings\nAdapterSettings('dora')\n"
        "assert not {'torch', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(FOLDER.parents[1])})


def test_where_readers_apply_no_scale_it_is_in_the_factors(make_settings: MakeSettings) -> None:
    """LoKr with both factors whole: without alpha in the file, and γ = 1/4 in the first factor."""
    settings = AdapterSettings("lokr", rank=64, alpha=16.0, targets=r"attn2\.to_q$")
    adapter = open_session(make_settings(settings)).adapters["model"]
    for name, parameter in adapter.parameters().items():
        if ".lokr_w1." in name:
            torch.nn.init.ones_(parameter)  # as after training: it begins with zeros
    for _, tensors in written(adapter, "kohya"):
        assert {".lokr_w1", ".lokr_w2"} == tensors.keys()
        assert bool((tensors[".lokr_w1"] == 0.25).all())


def test_layers_with_rows_of_zeros_are_no_layers_of_a_dora() -> None:
    def network() -> nn.Sequential:
        dead = nn.Linear(4, 4)
        dead.weight.data[2] = 0.0
        return nn.Sequential(nn.Linear(3, 4), dead, nn.Linear(4, 2)).requires_grad_(False)

    torch.manual_seed(0)
    base, x = network(), torch.randn(5, 3)
    wanted = base(x)
    dora = AdapterSettings(kind="dora", rank=1, targets=r"^\d$")
    adapter = inject(base, dora, seed=0)
    assert ([*adapter.modules], adapter.left_out) == (["0", "2"], ("1",))
    assert torch.allclose(base(x), wanted, atol=1e-6)
    assert [*inject(network(), AdapterSettings(rank=1, targets=r"^\d$"), seed=0).modules] == ["0", "1", "2"]
    with pytest.raises(InputError, match="can train none of the 1 layers"):
        inject(network(), AdapterSettings(kind="dora", rank=1, targets="^1$"), seed=0)
    (said,) = _left_out({"model": adapter}, "dora")
    assert said.startswith("1 layers of model stay as they are") and said.endswith("all zeros): 1")
