"""What takes time in a LoRA's receipt holds up neither loading nor sampling; the picture has all of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from loraloom.engine.events import Event, NodeFinished, NodeNote
from loraloom.lora import hashes
from loraloom.lora.hashes import Hashes, hashes_of
from loraloom.models.checkpoint import open_checkpoint
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.session import Session
from tests import tiny_models
from tests.demo_models import demo_lora, write_demo_models

PAGE = Path(__file__).parents[2] / "examples/lora-tutorial.md"
SMALL = {"EmptyLatentImage.width": 64, "EmptyLatentImage.height": 64, "KSampler.steps": 1, "KSampler.seed": 1}
LORA = "loras/1.5/1.5-dpo-LoRA.safetensors"


def test_hashes_are_waited_for_when_the_picture_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here they are computed only once the picture is decoded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_demo_models(tmp_path / "models")
    decoded, threads = threading.Event(), set[str]()

    def slow(path: Path) -> Hashes:
        assert decoded.wait(60)
        threads.add(threading.current_thread().name)
        return hashes_of(path)

    monkeypatch.setattr(hashes, "hashes_of", slow)
    seen: list[Event] = []

    def see(event: Event) -> None:
        seen.append(event)
        if isinstance(event, NodeFinished) and event.class_type == "VAEDecode":
            assert not [e for e in seen if isinstance(e, NodeNote)]
            decoded.set()

    with Session(tmp_path / "models", output_dir=tmp_path / "output", dtype="fp32") as session:
        run = session.run(PAGE, workflow=1, set=SMALL, on_event=see)
    (receipt,) = run.receipts
    wanted = hashes_of(tmp_path / "models" / LORA)
    assert (receipt["digest"], receipt["hashes"]) == (wanted.blake3, wanted.named())
    assert {effect["component"] for effect in receipt["effects"]} == {"model", "clip"}
    with Image.open(run.outputs[0].path) as picture:
        assert json.loads(picture.info["loraloom"])["loras"] == json.loads(json.dumps([receipt]))
    assert threads == {"loraloom-receipts"}


def test_a_file_that_is_gone_meanwhile_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    path = tmp_path / "lora.safetensors"
    save_file(demo_lora(), path)
    held = threading.Event()
    shelf = LoraShelf()
    shelf._measuring.submit(held.wait)  # pyright: ignore[reportPrivateUsage]
    shelved = shelf.load(path, model, clip)
    path.unlink()
    held.set()
    receipt = shelved.receipt.result(60)
    assert receipt.matched == shelved.lora.receipt.matched > 0
    assert "not known" in receipt.warnings[-1] and not receipt.hashes
    shelf.close()


def test_a_file_that_another_one_replaced_meanwhile_is_not_called_by_that_ones_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    path, other = tmp_path / "lora.safetensors", tmp_path / "other.safetensors"
    save_file(demo_lora(), path)
    save_file({name: value * 2 for name, value in demo_lora().items()}, other)
    held = threading.Event()
    shelf = LoraShelf()
    shelf._measuring.submit(held.wait)  # pyright: ignore[reportPrivateUsage]
    shelved = shelf.load(path, model, clip)
    other.replace(path)
    held.set()
    receipt = shelved.receipt.result(60)
    assert "another file has taken its place" in receipt.warnings[-1]
    assert not receipt.hashes and not receipt.digest
    shelf.close()


def test_a_peft_lora_is_loaded_again_when_its_scale_changes(tmp_path: Path) -> None:
    model, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "tiny.safetensors"))
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file(demo_lora(), path)
    shelf, loaded = LoraShelf(), list[object]()
    for alpha in (8, 8, 4):
        text = json.dumps({"r": 4, "lora_alpha": alpha})
        if not config.exists() or config.read_text() != text:
            config.write_text(text)
        loaded.append(shelf.load(path, model, clip))
    assert loaded[0] is loaded[1] and loaded[1] is not loaded[2]
    shelf.close()
