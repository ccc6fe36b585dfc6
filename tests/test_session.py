"""From workflow to picture on a narrow model in the real file format."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

import loraloom
from loraloom.engine.events import Event, NodeProgress
from loraloom.errors import Cancelled, InputError, MissingModelsError, WorkflowError
from loraloom.models.encoder import EncoderKind
from loraloom.models.known_model import Blueprint, KnownModel
from loraloom.models.names import Shapes
from loraloom.result import Run
from loraloom.runtime.previews import LatentPreview
from loraloom.session import NodeFailure, Session
from tests.demo_models import demo_lora, write_demo_models

PAGE = Path(__file__).parent.parent / "examples/lora-tutorial.md"
SMALL = {"EmptyLatentImage.width": 64, "EmptyLatentImage.height": 64, "KSampler.steps": 2}
STRENGTHS = ("LoraLoader.strength_model", "LoraLoader.strength_clip")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_demo_models(root)
    return root


@pytest.fixture(scope="module")
def session(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(models, output_dir=tmp_path_factory.mktemp("output"), dtype="fp32") as made:
        yield made


def pixels(session: Session, **options: Any) -> np.ndarray:
    changes = {**SMALL, **options.pop("set", {})}
    return np.asarray(session.run(PAGE, workflow=1, set=changes, **options).images[0])


def api(session: Session, workflow: int = 1, **options: Any) -> dict[str, Any]:
    return session.prepare(PAGE, workflow=workflow, **options).to_api()


def test_what_shapes_say_of_a_network_is_worked_out_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    of_model, of_encoder = KnownModel.blueprint, EncoderKind.network

    def model_asked(self: KnownModel, shapes: Shapes) -> Blueprint:
        asked.append(self.name)
        return of_model(self, shapes)

    def encoder_asked(self: EncoderKind, native: Shapes) -> Blueprint:
        asked.append(self.name)
        return of_encoder(self, native)

    monkeypatch.setattr(KnownModel, "blueprint", model_asked)
    monkeypatch.setattr(EncoderKind, "network", encoder_asked)
    with Session(models, output_dir=tmp_path, dtype="fp32") as session:
        for seed, strength in ((1, 0.0), (2, 0.5), (3, 1.0)):
            session.run(PAGE, workflow=1, set={**SMALL, "LoraLoader.strength_model": strength}, seed=seed)
    assert sorted(asked) == [
        "clip_l",
        "kl",
        "kl",
        "sd15",
    ]  # the checkpoint's own VAE is another than the loader's


def test_the_tutorials_first_workflow_gives_a_picture_and_a_complete_receipt(session: Session) -> None:
    result = session.run(PAGE, workflow=1, set=SMALL)
    (picture,) = result.images
    assert picture.size == (64, 64)
    (receipt,) = result.receipts
    assert receipt["complete"] and receipt["matched"] == receipt["total"] > 0
    assert {part["component"]: part["matched"] > 0 for part in receipt["components"]} == {
        "model": True,
        "clip": True,
    }
    assert (receipt["strength_model"], receipt["strength_clip"]) == (1.0, 1.0)


def test_the_lora_changes_the_picture_and_strength_zero_does_not(session: Session) -> None:
    with_lora = pixels(session)
    off = pixels(session, set=dict.fromkeys(STRENGTHS, 0))
    graph = api(session, set=SMALL)
    graph["6"]["inputs"]["model"] = ["1", 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["1", 1]
    without = np.asarray(session.run(graph).images[0])
    assert np.array_equal(off, without)
    assert not np.array_equal(with_lora, without)
    assert np.array_equal(with_lora, pixels(session))


def test_a_result_that_was_kept_keeps_its_receipts(session: Session) -> None:
    first = session.run(PAGE, workflow=1, set=SMALL)
    second = session.run(PAGE, workflow=1, set=SMALL)
    assert second.cached
    assert second.receipts == first.receipts


def test_the_picture_carries_workflow_prompt_and_receipts_and_runs_again(session: Session) -> None:
    result = session.run(PAGE, workflow=1, set=SMALL)
    path = result.outputs[0].path
    with Image.open(path) as picture:
        texts = dict(picture.info)
    assert json.loads(texts["prompt"])["6"]["inputs"]["steps"] == 2
    assert {n["type"] for n in json.loads(texts["workflow"])["nodes"]} >= {"LoraLoader", "KSampler"}
    assert json.loads(texts["loraloom"])["loras"][0]["matched"] == result.receipts[0]["matched"]
    again = session.run(path, set={"SaveImage.filename_prefix": "again"})
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(result.images[0]))


def test_the_second_workflow_changes_the_model_alone(session: Session) -> None:
    small = {"EmptySD3LatentImage.width": 64, "EmptySD3LatentImage.height": 64, "KSampler.steps": 2}

    def drawn(strength: float) -> tuple[Run, np.ndarray]:
        changes = {**small, "LoraLoaderModelOnly.strength_model": strength}
        result = session.run(PAGE, workflow=2, set=changes)
        return result, np.asarray(result.images[0])

    result, with_lora = drawn(0.8)
    (receipt,) = result.receipts
    assert receipt["complete"]
    assert [part["component"] for part in receipt["components"]] == ["model"]
    _, off = drawn(0)
    graph = api(session, 2, set=small)
    graph["8"]["inputs"]["model"] = ["1", 0]
    assert np.array_equal(off, np.asarray(session.run(graph).images[0]))
    assert not np.array_equal(off, with_lora)
    assert np.array_equal(with_lora, drawn(0.8)[1])


def test_progress_previews_and_cancelling(session: Session) -> None:
    cancel = threading.Event()
    seen: list[NodeProgress] = []

    def watch(event: Event) -> None:
        if isinstance(event, NodeProgress):
            seen.append(event)
            cancel.set()

    with pytest.raises(Cancelled):
        session.run(
            PAGE, workflow=1, set={**SMALL, "KSampler.steps": 50}, seed=5, on_event=watch, cancel=cancel
        )
    assert len(seen) < 50
    preview = seen[0].preview
    assert isinstance(preview, LatentPreview)
    assert preview.picture().size == (64, 64)


def test_lora_option_goes_behind_the_checkpoint(session: Session) -> None:
    name = "1.5-dpo-LoRA.safetensors"
    result = session.run(PAGE, workflow=1, set=SMALL, loras=[f"{name}:0.5:0.25"])
    assert [(r["strength_model"], r["strength_clip"]) for r in result.receipts] == [(0.5, 0.25), (1.0, 1.0)]


def test_a_page_with_two_workflows_asks_which(session: Session) -> None:
    with pytest.raises(InputError, match="2 workflows"):
        session.run(PAGE)


def test_missing_models_are_named_before_anything_runs(tmp_path: Path) -> None:
    with Session(tmp_path, output_dir=tmp_path) as empty, pytest.raises(MissingModelsError) as caught:
        empty.run(PAGE, workflow=1)
    assert {m.folder for m in caught.value.missing} == {"checkpoints", "loras", "vae"}


def test_an_unknown_class_is_named_with_id_and_title(session: Session) -> None:
    graph = api(session)
    graph["8"]["class_type"] = "MyOwnDecoder"
    with pytest.raises(WorkflowError, match=r"node 8.*MyOwnDecoder"):
        session.run(graph)


def test_a_failing_node_says_which_and_why(session: Session, models: Path) -> None:
    broken = models / "vae/broken.safetensors"
    broken.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(NodeFailure, match=r"node 7.*VAELoader.*HTML") as caught:
        session.run(PAGE, workflow=1, set={**SMALL, "VAELoader.vae_name": "broken.safetensors"})
    assert caught.value.exit_code == 2


def test_the_one_line_interface(models: Path, tmp_path: Path) -> None:
    result = loraloom.run(PAGE, workflow=1, models=models, set=SMALL, seed=3, output_dir=tmp_path / "out")
    assert result.outputs[0].path.is_file()
    assert result.to_json()["status"] == "done"


def test_embeddings_that_a_lora_bundles_can_be_named_in_the_prompt(session: Session, models: Path) -> None:
    word = {
        "bundle_emb.shiny.clip_l": torch.ones(2, 64),
        "bundle_emb.dull.string_to_param.*": torch.zeros(64),
    }
    save_file({**demo_lora(), **word}, models / "loras/bundle.safetensors")
    own = {"LoraLoader.lora_name": "bundle.safetensors"}

    def drawn(prompt: str) -> tuple[Run, np.ndarray]:
        result = session.run(PAGE, workflow=1, set={**SMALL, **own, "3.text": prompt})
        return result, np.asarray(result.images[0])

    shiny, first = drawn("a embedding:shiny rose")
    _, second = drawn("a embedding:dull rose")
    unknown, _ = drawn("a embedding:nothing rose")
    assert not shiny.warnings
    assert not np.array_equal(first, second)
    assert any("nothing" in warning for warning in unknown.warnings)
    hashes = shiny.receipts[0]["hashes"]
    assert hashes["sha256"] == hashlib.sha256((models / "loras/bundle.safetensors").read_bytes()).hexdigest()
