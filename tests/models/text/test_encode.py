"""Prompts to conditionings: on narrow encoders by the rules, on full-size ones against ComfyUI's figures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.handles import TextEncoders, TextPart
from loraloom.models.residency.memory import Memory
from loraloom.models.text.clip import ClipConfig, ClipText
from loraloom.models.text.encode import encode_prompt
from loraloom.models.text.t5 import T5Config, T5Text
from loraloom.models.text_sources import checkpoint_parts
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile

PARITY = Path(__file__).parents[2] / "data/parity"
CLIP_L = ClipConfig(49408, 77, 64, 3, 96, quick_gelu=True)
CLIP_G = ClipConfig(49408, 77, 128, 4, 96, quick_gelu=False, projection=32)
T5 = T5Config(32128, 32, 2, 4, 32, 40, 32)


class PlainMemory:
    """Builds each encoder once from its file; `runs` counts the forward passes."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.runs = 0
        self._modules: dict[TextPart, nn.Module] = {}

    def reserve_text(self, encoders: TextEncoders, role: str, numbers: int) -> None:
        pass

    def text_gives_way(self, encoders: TextEncoders) -> bool:
        return False

    def text(self, encoders: TextEncoders) -> dict[str, nn.Module]:
        for part in encoders.parts:
            if part not in self._modules:
                self._modules[part] = self._build(part)
        return {part.role: self._modules[part] for part in encoders.parts}

    def _build(self, part: TextPart) -> nn.Module:
        blueprint = part.blueprint
        with torch.device("meta"):
            module = blueprint.build()
        names = {name: blueprint.placements[name].native for name in module.state_dict()}
        state = {name: part.weights.read(native, torch.float32) for name, native in names.items()}
        module.load_state_dict(state, assign=True)
        module.register_forward_pre_hook(self._count)
        return module.requires_grad_(False).eval()

    def _count(self, module: nn.Module, inputs: object) -> None:
        self.runs += 1


def part(tmp_path: Path, role: str, module: nn.Module) -> TextPart:
    generator = torch.Generator().manual_seed(len(role))
    state = {n: torch.randn(t.shape, generator=generator) * 0.2 for n, t in module.state_dict().items()}
    path = tmp_path / f"{role}.safetensors"
    save_file(state, path)
    return TextPart(role, WeightSource.of_file(TensorFile(path), "", lambda n: f"{role}.transformer.{n}"))


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    (tmp_path / "embeddings").mkdir()
    save_file({"x": torch.full((2, 64), 0.3)}, tmp_path / "embeddings/two.safetensors")
    return ModelFolders([tmp_path])


@pytest.fixture
def sd15(tmp_path: Path) -> TextEncoders:
    return TextEncoders("sd15", (part(tmp_path, "clip_l", ClipText(CLIP_L)),))


@pytest.fixture
def sdxl(tmp_path: Path) -> TextEncoders:
    parts = part(tmp_path, "clip_l", ClipText(CLIP_L)), part(tmp_path, "clip_g", ClipText(CLIP_G))
    return TextEncoders("sdxl", parts)


@pytest.fixture
def flux(tmp_path: Path) -> TextEncoders:
    parts = part(tmp_path, "clip_l", ClipText(CLIP_L)), part(tmp_path, "t5xxl", T5Text(T5))
    return TextEncoders("flux", parts)


def encode(
    clip: TextEncoders, text: str | dict[str, str], folders: ModelFolders, memory: PlainMemory | None = None
) -> tuple[Tensor, Tensor]:
    (cond,), warnings = encode_prompt(memory or PlainMemory(), clip, text, folders)
    assert not warnings
    assert cond.pooled is not None
    assert cond.context.dtype == cond.pooled.dtype == torch.float32
    assert not cond.context.is_inference()
    return cond.context, cond.pooled


def test_weights_move_away_from_the_empty_prompt(sd15: TextEncoders, folders: ModelFolders) -> None:
    plain, _ = encode(sd15, "a red rose", folders)
    empty, _ = encode(sd15, "", folders)
    weighted, _ = encode(sd15, "a (red:1.5) rose", folders)
    expected = plain.clone()
    expected[0, 2] = empty[0, 2] + 1.5 * (plain[0, 2] - empty[0, 2])
    torch.testing.assert_close(weighted, expected)
    nothing, _ = encode(sd15, "(a red rose:0)", folders)
    torch.testing.assert_close(nothing[0, 1:4], empty[0, 1:4])


def test_the_empty_prompt_is_encoded_once(sd15: TextEncoders, folders: ModelFolders) -> None:
    memory = PlainMemory()
    for text in ("(a:1.2)", "(b:1.3)", "c"):
        encode(sd15, text, folders, memory)
    assert memory.runs == 4
    encode(sd15.with_clip_skip(-2), "(a:1.2)", folders, memory)
    assert memory.runs == 6


def test_chunks_follow_each_other(sd15: TextEncoders, folders: ModelFolders) -> None:
    long, pooled = encode(sd15, " ".join(["word"] * 80), folders)
    first, first_pooled = encode(sd15, " ".join(["word"] * 75), folders)
    second, _ = encode(sd15, " ".join(["word"] * 5), folders)
    torch.testing.assert_close(long, torch.cat([first, second], 1))
    torch.testing.assert_close(pooled, first_pooled)


def test_clip_skip(sd15: TextEncoders, folders: ModelFolders) -> None:
    last, pooled = encode(sd15, "a", folders)
    torch.testing.assert_close(encode(sd15.with_clip_skip(-1), "a", folders)[0], last)
    skipped, same = encode(sd15.with_clip_skip(-2), "a", folders)
    assert not torch.allclose(skipped, last)
    torch.testing.assert_close(same, pooled)
    beyond, _ = encode(sd15.with_clip_skip(-20), "a", folders)
    torch.testing.assert_close(beyond, last)


def test_embeddings_take_the_place_of_words(sd15: TextEncoders, folders: ModelFolders) -> None:
    named, pooled = encode(sd15, "a embedding:two b", folders)
    plain, plain_pooled = encode(sd15, "a b", folders)
    torch.testing.assert_close(named[0, :2], plain[0, :2])
    assert not torch.allclose(named[0, 2], plain[0, 2])
    assert not torch.allclose(pooled, plain_pooled)


def test_what_has_no_effect_is_said(sdxl: TextEncoders, folders: ModelFolders) -> None:
    (cond,), warnings = encode_prompt(PlainMemory(), sdxl, "a embedding:two embedding:no b", folders)
    assert sorted(w.name for w in warnings) == ["no", "two"]
    (plain,), _ = encode_prompt(PlainMemory(), sdxl, "a b", folders)
    torch.testing.assert_close(cond.context[..., 64:], plain.context[..., 64:])
    torch.testing.assert_close(cond.pooled, plain.pooled)


def test_sdxl_reads_two_encoders_side_by_side(sdxl: TextEncoders, folders: ModelFolders) -> None:
    context, pooled = encode(sdxl, "a", folders)
    assert context.shape == (1, 77, 64 + 128) and pooled.shape == (1, 32)
    mixed, mixed_pooled = encode(sdxl, {"l": "a", "g": "b"}, folders)
    torch.testing.assert_close(mixed[..., :64], context[..., :64])
    torch.testing.assert_close(mixed_pooled, encode(sdxl, "b", folders)[1])
    uneven, _ = encode(sdxl, {"l": "a", "g": " ".join(["word"] * 80)}, folders)
    assert uneven.shape == (1, 154, 192)
    torch.testing.assert_close(uneven[:, 77:, :64], encode(sdxl, "", folders)[0][..., :64])


def test_flux_reads_t5_and_pools_clip(flux: TextEncoders, folders: ModelFolders) -> None:
    context, pooled = encode(flux, "a", folders)
    assert context.shape == (1, 256, 32) and pooled.shape == (1, 64)
    mixed, mixed_pooled = encode(flux, {"l": "b", "t5xxl": "a"}, folders)
    torch.testing.assert_close(mixed, context)
    torch.testing.assert_close(mixed_pooled, encode(flux, "b", folders)[1])
    short = flux.with_option("t5xxl_min_length", 0).with_option("t5xxl_min_padding", 2)
    assert encode(short, "a", folders)[0].shape[1] == 5


def test_a_missing_encoder_is_named(flux: TextEncoders, folders: ModelFolders) -> None:
    with pytest.raises(ModelFileError, match="t5xxl is needed"):
        encode(TextEncoders("flux", flux.parts[:1]), "a", folders)


def _models() -> Path:
    root = os.environ.get("LORALOOM_PARITY_MODELS")
    if not root:
        pytest.skip("LORALOOM_PARITY_MODELS names no folder with the full-size models")
    return Path(root)


def _distance(found: Tensor, expected: np.ndarray) -> float:
    wanted = torch.from_numpy(expected)
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.heavy
def test_sd15_equals_comfyui() -> None:
    root = _models()
    file = TensorFile(root / "checkpoints/v1-5-pruned-emaonly-fp16.safetensors")
    clip = TextEncoders("sd15", checkpoint_parts(file, ("clip_l",)))
    memory, figures = PlainMemory(), np.load(PARITY / "clip_sd15.npz")
    for index, prompt in enumerate(figures["prompts"]):
        for skip in (1, 2):
            use = clip.with_clip_skip(-skip)
            (cond,), _ = encode_prompt(memory, use, str(prompt), ModelFolders([root]))
            assert cond.pooled is not None
            assert _distance(cond.context[..., ::8], figures[f"clip|{index}|{skip}"]) < 1e-5
            assert _distance(cond.pooled, figures[f"pooled|{index}|{skip}"]) < 1e-5


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("case", "text", "clip_skip"),
    [
        ("base", "a red rose in a vase, (sharp:1.2)", None),
        ("sizes", {"l": "a castle", "g": "a castle"}, None),
        ("clip_skip", "a castle", -3),
    ],
)
def test_sdxl_equals_comfyui(case: str, text: str | dict[str, str], clip_skip: int | None) -> None:
    root = _models()
    file = TensorFile(root / "checkpoints/sd_xl_base_1.0.safetensors")
    clip = TextEncoders("sdxl", checkpoint_parts(file, ("clip_l", "clip_g")), clip_skip=clip_skip)
    figures = np.load(PARITY / "text_sdxl.npz")
    context, pooled = encode(clip, text, ModelFolders([root]))
    assert _distance(context[..., ::8], figures[f"{case}|cond"]) < 1e-5
    assert _distance(pooled, figures[f"{case}|pooled"]) < 1e-5


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_flux_equals_comfyui_with_t5_kept_in_8_bits() -> None:
    root = _models()
    files = (root / "clip/t5xxl_fp8_e4m3fn.safetensors", root / "clip/clip_l.safetensors")
    clip = open_text_encoders(files, "flux")
    memory, figures = Memory("cpu", "fp32"), np.load(PARITY / "text_flux.npz")
    prompt = str(figures["prompts"][3])
    assert "(a red cube:1.4)" in prompt
    (cond,), _ = encode_prompt(memory, clip, prompt, ModelFolders([root]))
    assert cond.pooled is not None
    assert _distance(cond.context[..., :256:4], figures["t5|3"]) < 1e-5
    assert _distance(cond.context.norm(dim=-1), figures["t5norm|3"]) < 1e-5
    assert _distance(cond.pooled, figures["pooled|3"]) < 1e-5
    assert memory.resident_bytes < 6e9
