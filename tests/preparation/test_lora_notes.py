"""LoRA files behind a workflow: found again by hash, and looked into for hints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.folders import ModelFolders, model_folders
from loraloom.lora.hashes import hashes_of
from loraloom.preparation.lora_notes import lora_notes, with_renamed_loras
from loraloom.workflow.graph import Graph, GraphNode, Link, ModelReference


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolders:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models" / "loras" / "new").mkdir(parents=True)
    for name, seed in (("other", 0), ("new/renamed", 1)):
        tensors = {
            f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{side}.weight": torch.full((2, 2), float(seed))
            for side in ("up", "down")
        }
        path = tmp_path / "models" / "loras" / f"{name}.safetensors"
        save_file(tensors, path, {"modelspec.trigger_phrase": "sks"})
    return model_folders([tmp_path / "models"])


def _graph(name: str, digest: str | None = None) -> Graph:
    lora = {
        "model": Link("1", 0),
        "clip": Link("1", 1),
        "lora_name": name,
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    nodes = {
        "1": GraphNode("1", "CheckpointLoaderSimple", {}),
        "2": GraphNode("2", "LoraLoader", lora),
        "3": GraphNode("3", "CLIPTextEncode", {"clip": Link("2", 1), "text": "a dog"}),
        "4": GraphNode("4", "KSampler", {"model": Link("2", 0), "positive": Link("3", 0)}),
    }
    models = (ModelReference(name, "loras", "", digest),) if digest else ()
    return Graph(nodes, models=models)


def test_a_renamed_lora_is_found_by_its_hash(folders: ModelFolders) -> None:
    wanted = hashes_of(folders.resolve("loras", "new/renamed.safetensors")).sha256
    graph = with_renamed_loras(_graph("old.safetensors", wanted), folders)
    assert Path(str(graph.nodes["2"].inputs["lora_name"])) == Path("new/renamed.safetensors")
    assert "found by its hash" in graph.notes[-1]


@pytest.mark.parametrize("digest", [None, "0" * 64, "no hash"])
def test_without_a_matching_hash_nothing_changes(digest: str | None, folders: ModelFolders) -> None:
    graph = _graph("old.safetensors", digest)
    assert with_renamed_loras(graph, folders) == graph


def test_hints_come_from_the_file(folders: ModelFolders) -> None:
    (note,) = lora_notes(_graph("other.safetensors"), folders)
    assert "'sks'" in note
    assert lora_notes(_graph("absent.safetensors"), folders) == ()
