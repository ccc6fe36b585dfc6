"""Hashes by their definitions, the index that remembers them, and trigger words from six sources."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.hashes import EMPTY_SHA256, HashIndex, embedded_hash_note, hashes_of
from loraloom.lora.load import load_lora
from loraloom.lora.metadata import facts
from loraloom.lora.sidecars import read_sidecars
from loraloom.lora.triggers import triggers_of


def _file(path: Path, metadata: dict[str, str] | None = None, seed: int = 0, size: int = 300_000) -> Path:
    generator = torch.Generator().manual_seed(seed)
    save_file({"a.lora_up.weight": torch.randn(size, generator=generator)}, path, metadata)
    return path


def test_hashes_follow_their_definitions(tmp_path: Path) -> None:
    data = _file(tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = hashes_of(tmp_path / "a.safetensors")
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.autov2 == found.sha256[:10]
    assert found.tensors == hashlib.sha256(data[start:]).hexdigest()
    assert found.autov3 == found.tensors[:12]
    assert found.autov1 == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert found.blake3 == blake3(data).hexdigest()


def test_metadata_changes_the_file_hash_and_not_the_tensors(tmp_path: Path) -> None:
    one = hashes_of(_file(tmp_path / "a.safetensors"))
    two = hashes_of(_file(tmp_path / "b.safetensors", {"modelspec.title": "renamed"}))
    assert one.sha256 != two.sha256
    assert one.tensors == two.tensors


@pytest.mark.parametrize("form", ["sha256", "autov1", "autov2", "autov3", "blake3"])
def test_a_renamed_file_is_found_by_any_hash(form: str, tmp_path: Path) -> None:
    files = [_file(tmp_path / f"{n}.safetensors", seed=n) for n in range(4)]
    wanted = hashes_of(files[2]).named()[form]
    moved = tmp_path / "deep" / "other name.safetensors"
    moved.parent.mkdir()
    files[2].rename(moved)
    index = HashIndex(tmp_path / "cache" / "hashes.json")
    candidates = sorted(tmp_path.rglob("*.safetensors"))
    assert index.find(wanted.upper(), candidates) == moved
    assert index.find("0x" + wanted, candidates) == moved
    assert index.find("ffffffffffff", candidates) is None


def test_the_index_reads_a_file_once_and_notices_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.file_identity._COARSEST_CLOCK_NS", 0)
    path = _file(tmp_path / "a.safetensors", size=10)
    index = HashIndex(tmp_path / "hashes.json")
    first = index.hashes(path)
    index.save()
    again = HashIndex(tmp_path / "hashes.json")
    with monkeypatch.context() as patched:
        patched.setattr("loraloom.lora.hashes.hashes_of", lambda _: pytest.fail("read again"))
        assert again.hashes(path) == first
    _file(path, seed=1, size=10)
    os.utime(path, ns=(1, 1))
    assert again.hashes(path) != first


def test_the_index_notices_a_file_with_the_time_and_the_size_of_the_former_one(tmp_path: Path) -> None:
    path, index = _file(tmp_path / "a.safetensors", size=10), HashIndex(tmp_path / "hashes.json")
    os.utime(path, ns=(1, 1))
    first = index.hashes(path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    assert index.hashes(path) != first


def test_a_receipt_has_hashes_once_it_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a.lora_up.weight": torch.ones(4, 2), "a.lora_down.weight": torch.ones(2, 4)}, path)
    lora = load_lora(read_lora(path), {"model": Component("sd15", {"a.weight": (4, 4)})})
    assert not lora.receipt.digest and not lora.receipt.hashes
    hashes = hashes_of(path)
    receipt = lora.measured(hashes)
    assert receipt.digest == hashes.blake3 and receipt.hashes == hashes.named()
    assert replace(receipt, digest="", hashes={}) == lora.receipt


@pytest.mark.parametrize("content", ["", "{broken", "[]", '{"files": {"x": [1]}}', '{"files": 7}'])
def test_a_damaged_index_is_an_empty_one(content: str, tmp_path: Path) -> None:
    (tmp_path / "hashes.json").write_text(content)
    assert HashIndex(tmp_path / "hashes.json").hashes(_file(tmp_path / "a.safetensors", size=10))


def test_an_index_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    index = HashIndex(tmp_path / "file" / "hashes.json")
    index.hashes(_file(tmp_path / "a.safetensors", size=10))
    index.save()


def test_embedded_hashes_are_checked(tmp_path: Path) -> None:
    found = hashes_of(_file(tmp_path / "a.safetensors"))
    assert embedded_hash_note({"sshs_model_hash": found.tensors}, found) is None
    assert embedded_hash_note({"modelspec.hash_sha256": "0x" + found.tensors.upper()}, found) is None
    assert embedded_hash_note({}, found) is None
    assert "empty file" in (embedded_hash_note({"sshs_model_hash": EMPTY_SHA256}, found) or "")
    assert "edited" in (embedded_hash_note({"sshs_model_hash": "1" * 64}, found) or "")


SOURCES: tuple[tuple[str, str], ...] = (
    ("the user's note", "mine"),
    ("Civitai", "theirs"),
    ("modelspec.trigger_phrase", "phrase"),
    ("modelspec.usage_hint", "hint"),
    ("training tags", "tag"),
    ("training folders", "folder"),
)


@pytest.mark.parametrize("first", range(len(SOURCES)))
def test_the_first_source_that_speaks_counts(first: int, tmp_path: Path) -> None:
    """All sources from the n-th on are present; the n-th wins."""
    present = {source for source, _ in SOURCES[first:]}
    path = tmp_path / "a.safetensors"
    if "the user's note" in present:
        (tmp_path / "a.json").write_text(
            json.dumps({"activation text": "mine, also mine", "preferred weight": 1})
        )
    if "Civitai" in present:
        (tmp_path / "a.civitai.info").write_text(json.dumps({"trainedWords": ["theirs, too", "more"]}))
    metadata = {
        "modelspec.trigger_phrase": "phrase" if "modelspec.trigger_phrase" in present else "",
        "modelspec.usage_hint": "hint" if "modelspec.usage_hint" in present else "",
        "ss_tag_frequency": json.dumps({"1_x": {"tag": 9, "rare": 2}} if "training tags" in present else {}),
        "ss_dataset_dirs": json.dumps({"10_folder": {"n_repeats": 10}, "no number": {}}),
    }
    found = triggers_of(metadata, read_sidecars(path))
    assert (found.source, found.words[0]) == SOURCES[first]
    if found.source == "training tags":
        assert found.words == ("tag",)


def test_long_tags_are_counted_by_words() -> None:
    captions = {f"a photograph of sks dog number {n} on grass": 1 for n in range(8)}
    found = triggers_of({"ss_tag_frequency": json.dumps({"10_dog": captions})})
    assert {"sks", "dog"} <= set(found.words)


def test_sidecars_of_every_program(tmp_path: Path) -> None:
    (tmp_path / "a.metadata.json").write_text(json.dumps({"civitai": {"trainedWords": ["w"]}}))
    (tmp_path / "a.txt").write_text(" what it is \n")
    for name in ("a.preview.png", "a.jpg", "other.png"):
        (tmp_path / name).write_bytes(b"")
    found = read_sidecars(tmp_path / "a.safetensors")
    assert found.civitai["trainedWords"] == ["w"]
    assert found.description == "what it is"
    assert [path.name for path in found.previews] == ["a.jpg", "a.preview.png"]


def test_facts_are_readable() -> None:
    found = facts(
        {
            "ss_output_name": "name", "ss_training_started_at": "1700000000.5", "ss_clip_skip": "None",
            "ss_network_args": '{"algo": "lokr", "factor": "8"}', "ss_comment": "x",
        }
    )  # fmt: skip
    assert found == {"title": "name", "date": "2023-11-14", "network options": "algo lokr, factor 8"}
