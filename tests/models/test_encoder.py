"""The folder of text encoders is the registry; a recipe is chosen by type and files."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loraloom.models.encoders as folder
from loraloom.errors import ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models import recognition
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.encoder import checkpoint_shapes, encoder_kind, encoder_kinds
from loraloom.models.parts.encoder_layouts import CLIP_TOKENS
from loraloom.models.recognition import families
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.models.text.recipes import known_recipes
from loraloom.weights.header import read_header
from tests import narrow_models as narrow
from tests import tiny_models as tiny

ADDED = """
from loraloom.models.encoder import EncoderKind, NamedTensor, Size, Vocabulary
from loraloom.models.family import Blueprint, Placement

def build():
    from torch import nn
    return nn.Embedding(4, 8)

ENCODER = EncoderKind(
    name="NAME",
    title="An encoder of one table",
    layouts=(lambda shapes: [NamedTensor("weight", "table")] if "table" in shapes else None,),
    sizes=(Size("only", 8, 0),),
    measure=lambda shapes: (shapes["weight"][1], 0),
    blueprint=lambda prefix, shapes: Blueprint({}, build, {"weight": Placement(prefix + "weight")}),
    vocabulary=Vocabulary(lambda weights: None, pad=0),
    tokens_table=("weight",),
    prefixes=("there.",),
)
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are encoders too."""
    path = tmp_path / "more_encoders"
    path.mkdir()
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(path)])
    encoder_kinds.cache_clear()
    yield path
    encoder_kinds.cache_clear()
    for name in [name for name in sys.modules if name.startswith(f"{folder.__name__}.added")]:
        del sys.modules[name]


def test_an_encoder_is_one_file(added: Path, tmp_path: Path) -> None:
    (added / "added_table.py").write_text(ADDED.replace("NAME", "table"), "utf-8")
    path = tiny.write(tmp_path / "all.safetensors", {"there.table": (4, 8), "elsewhere.x": (2,)})
    assert checkpoint_shapes(read_header(path)) == {"table": {"table.transformer.weight": (4, 8)}}
    assert encoder_kind("table").title == "An encoder of one table"


def test_two_encoders_of_one_name_are_refused(added: Path) -> None:
    (added / "added_again.py").write_text(ADDED.replace("NAME", "clip_l"), "utf-8")
    with pytest.raises(ValueError, match="two text encoders are called 'clip_l'"):
        encoder_kinds()


def test_the_registry_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from loraloom.models.encoder import encoder_kinds; encoder_kinds();"
        "import loraloom.models.text.recipes;"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ModelFileError, match="'x'; known are .*clip_l"):
        encoder_kind("x")


def test_encoders_of_one_type_are_not_taken_for_anothers(tmp_path: Path) -> None:
    clip, t5 = tiny.write_clip_l(tmp_path / "clip.safetensors"), tiny.write_t5(tmp_path / "t5.safetensors")
    with pytest.raises(
        ModelFileError, match=r"type 'sdxl' takes clip_l and clip_g.*t5\.safetensors.*be flux"
    ):
        open_text_encoders((clip, t5), "sdxl")
    with pytest.raises(ModelFileError, match=r"type 'stable_diffusion' takes .*\bclip_l\b"):
        open_text_encoders((t5,), "stable_diffusion")


@pytest.mark.parametrize("start", ["model.", "model.language_model.", "language_model.model.", ""])
def test_language_models_are_read_under_one_name(tmp_path: Path, start: str) -> None:
    shapes = {name: shape for name, (shape, _, _) in narrow.language_model("", 1, start=start).known.items()}
    path = tiny.write(tmp_path / "qwen.safetensors", shapes | {"lm_head.weight": (8, 64)})
    (part,) = open_text_encoders((path,), "lumina2").parts
    assert part.weights.shapes["qwen3.transformer.model.layers.0.mlp.up_proj.weight"] == (128, 64)
    assert part.weights.shapes["qwen3.transformer.lm_head.weight"] == (8, 64)


def test_a_language_model_in_a_checkpoint(tmp_path: Path) -> None:
    shapes = {name: shape for name, (shape, _, _) in narrow.language_model("", 1).known.items()}
    path = tiny.write(
        tmp_path / "all.safetensors", tiny.prefixed("text_encoders.qwen3_4b.transformer.", shapes)
    )
    (part,) = open_text_encoders((path,), "lumina2").parts
    assert part.role == "qwen3" and "qwen3.transformer.model.norm.weight" in part.weights


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    shapes = {
        name: shape for name, (shape, _, _) in narrow.language_model("", 1, head_norms=False).known.items()
    }
    extra = {"model.layers.0.post_feedforward_layernorm.weight": (64,)}
    path = tiny.write(tmp_path / "gemma.safetensors", shapes | extra)
    with pytest.raises(ModelFileError, match=r"gemma\.safetensors.*Gemma 2.*tokenizer.*'spiece_model'"):
        open_text_encoders((path,), "lumina2")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"config": 3}'])
def test_a_damaged_tokenizer_is_a_model_file_error(tmp_path: Path, content: bytes) -> None:
    for made, name, kind in (
        (narrow.language_model("", 1, vocabulary=8, head_norms=False), "tekken_model", "flux2"),
        (narrow.gemma2(1, vocabulary=8), "spiece_model", "lumina2"),
    ):
        tensors = {key: torch.zeros(shape) for key, (shape, _, _) in made.known.items()}
        tensors[name] = torch.frombuffer(bytearray(content + b" "), dtype=torch.uint8)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        clip = open_text_encoders((tmp_path / f"{name}.safetensors",), kind)
        with pytest.raises(ModelFileError, match=rf"{name}\.safetensors: .*{name} is not a .* tokenizer"):
            encode_prompt(Memory("cpu", "fp32"), clip, "a", ModelFolders(()))


def test_a_published_width_settles_what_a_file_is(tmp_path: Path) -> None:
    """CLIP-L with a projection is CLIP-L beside bigG too, in either order."""
    clip_l, clip_g = (
        tiny.write(
            tmp_path / f"{width}.safetensors",
            tiny.clip_shapes(width=width, layers=1)
            | {"text_projection.weight": (width, width), CLIP_TOKENS: (8, width)},
        )
        for width in (768, 1280)
    )
    for paths in ((clip_l, clip_g), (clip_g, clip_l)):
        found = open_text_encoders(paths, "sdxl")
        assert found.kind == "sdxl"
        assert {part.role: part.weights.files[0].path for part in found.parts} == {
            "clip_l": clip_l,
            "clip_g": clip_g,
        }


def test_a_family_may_bring_its_own_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = replace(known_recipes()["z_image"], name="added", types=("mage",))
    family = replace(families()[0], name="added", prompt=own)
    monkeypatch.setattr(recognition, "families", lambda: (family,))
    known_recipes.cache_clear()
    try:
        shapes = {name: shape for name, (shape, _, _) in narrow.language_model("", 36, inner=2).known.items()}
        path = tiny.write(tmp_path / "qwen.safetensors", shapes | {"model.embed_tokens.weight": (8, 64)})
        assert open_text_encoders((path,), "mage").kind == "added"
    finally:
        known_recipes.cache_clear()


SMALL = {
    "qwen3": ("lumina2", narrow.language_model("", 2, vocabulary=8, inner=2)),
    "qwen25vl": ("qwen_image", narrow.qwen25vl(2, vocabulary=8)),
    "qwen3vl": ("krea2", narrow.qwen3vl("", 2, vocabulary=8)),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_language_model_is_refused(tmp_path: Path, name: str, seed: int) -> None:
    kind, made = SMALL[name]
    chance = random.Random(seed)
    shapes = {key: shape for key, (shape, _, _) in made.known.items()}
    key = chance.choice(list(shapes))
    shape = shapes.pop(key)
    changed = [shape[1:], (*shape, 2), (0, *shape[1:]), tuple(size + 1 for size in shape), None][seed % 5]
    if changed is not None:
        shapes[key] = changed
    path = tiny.write(tmp_path / "damaged.safetensors", shapes)
    with pytest.raises(ModelFileError, match=r"damaged\.safetensors"):
        Memory("cpu", "fp32").text(open_text_encoders((path,), kind))


def test_a_table_too_small_for_the_tokenizer_is_said(tmp_path: Path) -> None:
    kind, made = SMALL["qwen3"]
    path = made.write(tmp_path / "small.safetensors")
    with pytest.raises(ModelFileError, match=r"small\.safetensors: Qwen3 has 8 token vectors, too few"):
        encode_prompt(Memory("cpu", "fp32"), open_text_encoders((path,), kind), "a", ModelFolders(()))
