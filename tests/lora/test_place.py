"""Where modules go, piece by piece, and what is said of those that go nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from loraloom.lora.comfyui import SKIPPED
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import LoraFile, read_lora
from loraloom.lora.place import BOOKKEEPING, BUNDLED, NO_NETWORK, NO_TEXT_ENCODER, place
from loraloom.weights.patch import Target

ATTENTION = "input_blocks.1.1.transformer_blocks.0.attn1"
NETWORK = Component(
    "sd15",
    {
        f"{ATTENTION}.qkv.weight": (12, 6),
        f"{ATTENTION}.to_out.0.weight": (6, 6),
        f"{ATTENTION}.to_out.0.bias": (6,),
    },
    {
        "attn.qkv": Target(f"{ATTENTION}.qkv.weight"),
        "attn.kv": Target(f"{ATTENTION}.qkv.weight", (4, 12)),
        "attn.out": Target(f"{ATTENTION}.to_out.0.weight"),
    },
)
TEXT = Component(
    "sd15", {"clip_l.fc1.weight": (4, 4)}, {"clip_l.text_model.fc1": Target("clip_l.fc1.weight")}
)
MODEL: dict[ComponentName, Component] = {"model": NETWORK}


def written(path: Path, shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> LoraFile:
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path / "a.safetensors", metadata)
    return read_lora(path / "a.safetensors")


def parts(name: str, rows: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Kohya's parts of a fused layer, of so many rows each."""
    found: dict[str, tuple[int, ...]] = {}
    for number, count in enumerate(rows):
        found[f"{name}.lora_up.{number}.weight"] = (count, 2)
        found[f"{name}.lora_down.{number}.weight"] = (2, 6)
    return found


def test_parts_of_a_fused_layer_follow_each_other_within_its_rows(tmp_path: Path) -> None:
    whole = place(written(tmp_path, parts("lora_unet_attn_qkv", (4, 6, 2))), MODEL)
    assert [piece.target.rows for piece in whole.pieces] == [(0, 4), (4, 10), (10, 12)]
    inner = place(written(tmp_path, parts("lora_unet_attn_kv", (2, 6))), MODEL)
    assert [piece.target.rows for piece in inner.pieces] == [(4, 6), (6, 12)]
    assert (inner.modules("model"), inner.modules("clip"), inner.totals) == (1, 0, {"model": 1})


def test_parts_that_go_beyond_the_rows_are_refused(tmp_path: Path) -> None:
    for name, rows in (("lora_unet_attn_qkv", (4, 10)), ("lora_unet_attn_kv", (4, 6))):
        found = place(written(tmp_path, parts(name, rows)), MODEL)
        assert len(found.pieces) == 1
        assert [(one.module, one.reason) for one in found.rejected] == [
            (name, "its parts have more rows than the weight")
        ]


def test_a_slice_does_not_reach_into_its_neighbours(tmp_path: Path) -> None:
    component = Component("sd15", {"x.qkv.weight": (12, 6)}, {"attn.q": Target("x.qkv.weight", (0, 4))})
    found = place(written(tmp_path, parts("lora_unet_attn_q", (4, 4))), {"model": component})
    assert [piece.target.rows for piece in found.pieces] == [(0, 4)]
    assert len(found.rejected) == 1


def test_what_is_for_a_part_that_is_not_changed_is_left_out_by_design(tmp_path: Path) -> None:
    names = ("lora_unet_attn_out", "lora_te_text_model_fc1")
    file = written(
        tmp_path,
        {f"{n}.lora_{d}.weight": (s, s) for n, s in zip(names, (6, 4), strict=True) for d in ("up", "down")},
    )
    model = place(file, MODEL)
    assert [(one.reason, one.modules) for one in model.ignored] == [(NO_TEXT_ENCODER, (names[1],))]
    assert (model.modules("model"), model.totals) == (1, {"model": 1, "clip": 1})
    clip = place(file, {"clip": TEXT})
    assert [(one.reason, one.modules) for one in clip.ignored] == [(NO_NETWORK, (names[0],))]
    assert (clip.modules("clip"), clip.unplaced) == (1, ())


def test_tensors_beside_the_modules_are_told_apart(tmp_path: Path) -> None:
    out = {f"lora_unet_attn_out.lora_{d}.weight": (6, 6) for d in ("up", "down")}
    others = {"lora_aux.step": (1,), "strange": (2,), "bundle_emb.word.string_to_param.*": (1, 4)}
    found = place(written(tmp_path, {**out, **others, "lora_unet_attn_out.lora_mid.x": (1,)}), MODEL)
    assert {one.reason: one.modules for one in found.ignored} == {
        BUNDLED: ("bundle_emb.word.string_to_param.*",),
        BOOKKEEPING: ("lora_aux.step",),
    }
    assert set(found.unknown) == {"strange", "lora_unet_attn_out.lora_mid.x"}


def test_a_layer_spelled_twice_counts_once_and_one_without_a_bias_has_none(tmp_path: Path) -> None:
    spelled = ("lora_unet_attn_out", "attn.out")
    file = written(tmp_path, {f"{n}.lora_{d}.weight": (6, 6) for n in spelled for d in ("up", "down")})
    found = place(file, MODEL)
    assert len(found.pieces) == 1
    assert [one.reason for one in found.rejected] == [
        f"spelled twice: {found.pieces[0].module!r} is the same place; the first one counts"
    ]
    biased = place(written(tmp_path, {"attn.out.diff_b": (6,), "attn.qkv.diff_b": (12,)}), MODEL)
    assert [piece.target.weight for piece in biased.pieces] == [f"{ATTENTION}.to_out.0.bias"]
    assert [one.reason for one in biased.rejected] == ["the base has no bias here"]


def test_what_comfyui_would_skip_is_named_where_its_result_is_wanted(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {
            **parts("lora_unet_attn_qkv", (12,)),
            "nobody.lora_up.weight": (6, 2),
            "nobody.lora_down.weight": (2, 6),
        },
    )
    assert len(place(file, MODEL).pieces) == 1
    found = place(file, MODEL, compat="comfyui")
    assert found.pieces == ()
    assert found.unplaced == ("nobody",)
    ((reason, modules),) = [(one.reason, one.modules) for one in found.ignored]
    assert reason == SKIPPED and len(modules) == 1
