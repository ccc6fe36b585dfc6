"""What is loaded from a folder, what is skipped, and what the schemas say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loraloom.custom_nodes.load import Packs, load_packs
from loraloom.engine.validation import ClassChecks
from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.workflow.graph import Graph
from loraloom.workflow.object_info import object_info
from loraloom.workflow.report import Report
from loraloom.workflow.validate import validate
from tests.custom_nodes.graphs import events, graph, shown

PACK = """
class Node:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES = ("INT",)
    FUNCTION = "give"
    OUTPUT_NODE = True
    def give(self):
        import folder_paths
        return {"ui": {"shown": [folder_paths.get_folder_paths("loras")]}, "result": (1,)}
NODE_CLASS_MAPPINGS = {"Node": Node}
"""


def test_what_fails_is_named_and_the_rest_is_there(packs: Packs) -> None:
    assert {f.name: f.cause.partition(":")[0] for f in packs.failed} == {
        "broken-import": "ModuleNotFoundError",
        "no_nodes.py": "TypeError",
        "single.py: TpNoInputs": "AttributeError",
    }
    assert "there_is_no_such_library" in str(packs.failed[0])
    assert {"TpNumber", "TpLazyMix", "TpCombined"} <= set(packs.nodes)


def test_schemas_are_those_of_object_info(packs: Packs, folders: ModelFolders) -> None:
    info = object_info(packs.nodes["TpNumber"].schema, folders.list)
    assert info == {
        "input": {"required": {"value": ["INT", {"default": 1, "min": 0, "max": 99, "tooltip": "how many"}]}},
        "input_order": {"required": ["value"]},
        "output": ["INT"],
        "output_is_list": [False],
        "output_name": ["INT"],
        "name": "TpNumber",
        "display_name": "A number",
        "description": "A number.",
        "python_module": "custom_nodes.testing-pack",
        "category": "testing",
        "output_node": False,
    }
    same = packs.nodes["TpPassthrough"].schema
    assert (same.inputs[0].type, same.outputs[0].type, same.outputs[0].name) == ("*", "*", "same")
    assert packs.nodes["TpShow"].schema.inputs[0].options == {"forceInput": True}


def test_choices_follow_the_folders(packs: Packs, folders: ModelFolders) -> None:
    schema = packs.nodes["TpChoose"].schema
    size, lora, sampler, mode, note = schema.inputs
    assert size.choices == ("small", "large") and schema.outputs[1].type == "COMBO"
    assert lora.all_choices(folders.list) == ["rose.safetensors", "none"]
    assert "euler" in sampler.choices and mode.choices == ("a", "b") and not note.required
    new = folders.directories("loras")[0] / "later.safetensors"
    new.write_bytes(b"-")
    given = {"size": "small", "sampler": "euler", "mode": "b"}
    wanted = graph(
        choose=("TpChoose", {**given, "lora": "later.safetensors"}),
        show=("TpShow", {"value": ("choose", 0)}),
    )
    assert _check(packs, wanted, folders).ok
    assert shown(events(packs.nodes, wanted)) == {"show": [f"small later.safetensors {new}"]}
    bad = graph(choose=("TpChoose", {**given, "lora": "no"}), show=("TpShow", {"value": ("choose", 0)}))
    assert [m.name for m in _check(packs, bad, folders).missing] == ["no"]


@pytest.mark.parametrize(
    ("kind", "inputs", "problems"),
    [
        ("TpChecked", {"size": 5, "kind": "c", "other": 1}, []),
        ("TpChecked", {"size": 12, "kind": "a", "other": 1}, ["size 12 is too much"]),
        ("TpChecked", {"size": 5, "kind": "a", "other": 5}, ["other"]),
        ("TpCheckedAll", {"size": 5, "kind": "c", "other": 5}, []),
        ("TpCheckedAll", {"size": 15, "kind": "c", "other": 5}, ["node n (TpCheckedAll)"]),
        ("TpCheckedLater", {"size": 12, "kind": "a", "other": 1}, ["size 12 is too much, later"]),
        ("TpCheckedLater", {"size": "text", "kind": "a", "other": 1}, None),
        ("TpCheckedTypes", {"size": ("float", 0), "kind": "a", "other": 1}, []),
        ("TpCheckedTypes", {"size": ("int", 0), "kind": "a", "other": 1}, ["got {'size': 'INT'}"]),
        ("TpChecked", {"size": ("float", 0), "kind": "a", "other": 1}, None),
        ("TpCheckedGiven", {"size": ("int", 0), "kind": "a", "other": 1}, []),
        ("TpCheckedGiven", {"size": 3, "kind": "a", "other": 1}, ["got 3"]),
    ],
)
def test_classes_check_their_own_inputs(
    packs: Packs, folders: ModelFolders, kind: str, inputs: dict[str, object], problems: list[str] | None
) -> None:
    wanted = graph(
        n=(kind, inputs),
        int=("TpNumber", {"value": 1}),
        float=("TpAverage", {"first": ("int", 0)}),
        show=("TpShow", {"value": 1}),
    )
    report = _check(packs, wanted, folders)
    found = [p.details for p in report.problems]
    if problems is None:
        assert found
    elif kind == "TpChecked" and inputs["other"] == 5:
        assert [p.type for p in report.problems] == ["value_bigger_than_max"]
    else:
        assert found == problems
    # The other output runs in any case.
    assert report.outputs == (("show",) if found else ("n", "show"))


def test_a_missing_class_leaves_the_other_output(packs: Packs, folders: ModelFolders) -> None:
    wanted = graph(gone=("TpGone", {}), a=("TpShow", {"value": ("gone", 0)}), b=("TpShow", {"value": 1}))
    report = _check(packs, wanted, folders)
    assert (report.outputs, report.failed_outputs) == (("b",), ("a",))
    said = events(packs.nodes, Graph({"b": wanted.nodes["b"], "gone": wanted.nodes["gone"]}))
    assert shown(said) == {"b": [1]}


def test_a_folder_that_is_a_pack_and_imports_of_each_session(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "models/loras").mkdir(parents=True)
    pack = tmp_path / "my-pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(PACK)
    for name in ("one", "two"):
        models = tmp_path / name / "models"
        packs = load_packs([pack], folders=ModelFolders([models]))
        try:
            assert packs.failed == ()
            assert shown(events(packs.nodes, graph(n=("Node", {})))) == {"n": [[str(models / "loras")]]}
        finally:
            packs.close()


def test_nothing_stays_behind(tmp_path: Path, folders: ModelFolders) -> None:
    (tmp_path / "pack.py").write_text("import folder_paths, comfy.utils, nodes\nNODE_CLASS_MAPPINGS = {}\n")
    before, finders = set(sys.modules), [*sys.meta_path]
    packs = load_packs([tmp_path], folders=folders)
    assert packs.failed == () and {"folder_paths", "comfy.utils", "nodes"} <= set(sys.modules)
    packs.close()
    left = {name for name in set(sys.modules) - before if not name.startswith(("loraloom", "torch"))}
    assert not {n for n in left if n.startswith(("comfy", "folder_paths", "nodes", "custom_nodes"))}
    assert sys.meta_path == finders


def test_an_installed_comfy_is_left_alone(tmp_path: Path, folders: ModelFolders) -> None:
    (tmp_path / "site/comfy").mkdir(parents=True)
    (tmp_path / "site/comfy/__init__.py").write_text("REAL = True\n")
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs/a.py").write_text("from comfy import REAL\nNODE_CLASS_MAPPINGS = {}\n")
    (tmp_path / "packs/b.py").write_text("import comfy.utils\nNODE_CLASS_MAPPINGS = {}\n")
    script = (
        "import sys; from pathlib import Path\n"
        "from loraloom.custom_nodes.load import load_packs; from loraloom.folders import ModelFolders\n"
        "packs = load_packs([Path(sys.argv[1])], folders=ModelFolders([]))\n"
        "sys.stdout.write(' '.join(f.name for f in packs.failed) + f\" {'torch' in sys.modules}\")\n"
    )
    source = Path(load_packs.__code__.co_filename).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "packs")],
        env={"PYTHONPATH": f"{source}:{tmp_path / 'site'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # Packs that ask for no tensors load none.
    assert done.stdout == "b.py False"


def test_a_folder_that_is_not_there(tmp_path: Path, folders: ModelFolders) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_packs([tmp_path / "nowhere"], folders=folders)


def test_what_packs_print_is_no_output(
    tmp_path: Path, folders: ModelFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.py").write_text("print('hello')\nraise SystemExit('no')\n")
    packs = load_packs([tmp_path], folders=folders)
    packs.close()
    assert [str(f) for f in packs.failed] == ["node pack loud.py was skipped: SystemExit: no"]
    assert capsys.readouterr().out == ""


def _check(packs: Packs, wanted: Graph, folders: ModelFolders) -> Report:
    schemas = {name: kind.schema for name, kind in packs.nodes.items()}
    return validate(wanted, schemas, folders.list, own=ClassChecks(packs.nodes))
