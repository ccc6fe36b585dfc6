"""What packs ask of ComfyUI outside of a run, and of Loraloom's nodes as classes."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from loraloom.custom_nodes.current import calling, current_run
from loraloom.custom_nodes.standins import model_management, progress
from loraloom.custom_nodes.standins.node_classes import METHODS, ClassMappings, NodesModule
from loraloom.custom_nodes.standins.node_typing import IO, CheckLazyMixin
from loraloom.custom_nodes.standins.samplers import KSampler
from loraloom.custom_nodes.standins.table import StandIns
from loraloom.errors import ModelFileError
from loraloom.folders import ModelFolders
from loraloom.workflow.implemented import implemented_schemas
from tests.nodes.runs import PlainRun


def test_progress_goes_to_the_run(tmp_path: Path) -> None:
    progress.ProgressBar(4).update(1)  # outside of a run: nothing
    run = PlainRun(tmp_path)
    with calling(run):
        assert current_run() is run
        bar = progress.ProgressBar(4)
        bar.update(1)
        bar.update_absolute(9, 8)
        assert model_management.get_torch_device() == torch.device("cpu")
        assert not model_management.processing_interrupted()
    assert current_run() is None
    assert run.steps == [(1, 4), (8, 8)]


def test_only_safetensors_are_opened(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"k": "v"})
    assert progress.load_torch_file(str(tmp_path / "a.safetensors"))["w"].tolist() == [1, 1]
    _, metadata = progress.load_torch_file(str(tmp_path / "a.safetensors"), return_metadata=True)
    assert metadata == {"k": "v"}
    with pytest.raises(ModelFileError, match="pickled"):
        progress.load_torch_file(str(tmp_path / "a.pt"))


def test_pictures_are_resized() -> None:
    assert progress.common_upscale(torch.zeros(1, 3, 8, 8), 8, 4, "bilinear", "center").shape == (1, 3, 4, 8)


def test_names() -> None:
    assert "euler" in KSampler.SAMPLERS and "karras" in KSampler.SCHEDULERS
    with pytest.raises(NotImplementedError, match="node KSampler"):
        KSampler()
    assert IO.INT != "FLOAT" and IO.INT == "INT" and not IO.ANY != "FLOAT"  # noqa: SIM202
    assert CheckLazyMixin().check_lazy_status(a=None, b=1) == ["a"]


def test_loralooms_nodes_as_classes(tmp_path: Path) -> None:
    module = NodesModule(ClassMappings())
    assert "KSampler" in module.NODE_CLASS_MAPPINGS and "NoSuch" not in module.NODE_CLASS_MAPPINGS
    assert set(METHODS) <= set(implemented_schemas())
    scale = cast("Any", module.ImageScale)
    assert scale.RETURN_TYPES == ("IMAGE",)
    assert list(scale.INPUT_TYPES()["required"])[:2] == ["image", "upscale_method"]
    with calling(PlainRun(tmp_path)):
        (image,) = getattr(scale(), scale.FUNCTION)(
            torch.zeros(1, 4, 4, 3), "bilinear", 8, 2, crop="disabled"
        )
    assert image.shape == (1, 2, 8, 3)
    with pytest.raises(AttributeError, match="NoSuch"):
        _ = module.NoSuch
    module.NODE_CLASS_MAPPINGS["NoSuch"] = Path
    assert module.NoSuch is Path


def test_progress_through_the_newer_interface(tmp_path: Path) -> None:
    finder = StandIns(ModelFolders([tmp_path]), tmp_path)
    finder.install()
    try:
        api = importlib.import_module("comfy_api.v0_0_2")
        run = PlainRun(tmp_path)
        api.ComfyAPISync().execution.set_progress(1, 2)  # outside of a run: nothing
        with calling(run):
            api.ComfyAPISync().execution.set_progress(value=1, max_value=4)
            asyncio.run(api.ComfyAPI().execution.set_progress(value=9, max_value=4))
    finally:
        finder.remove()
    assert run.steps == [(1, 4), (4, 4)]
