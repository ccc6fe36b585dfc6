"""Picture encoders and style models, against their published description over the same weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import InputError, ModelFileError
from loraloom.models.checkpoint import (
    open_checkpoint,
    open_diffusion_model,
    open_model_patch,
    open_picture_encoder,
    open_style_model,
)
from loraloom.models.picture_encoders import PictureStates
from loraloom.models.residency.memory import Memory
from loraloom.nodes import picture_styles as nodes
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, SampleContext
from tests import tiny_models as tiny
from tests.models.flux_reference import flux
from tests.nodes.runs import PlainRun

WIDTH, PATCH, GRID, LAYERS, PROJECTION, TOKEN = 128, 14, 3, 2, 24, 64
HEADS, SIDE = WIDTH // 64, PATCH * GRID


def write_encoder(path: Path, kind: str, grid: int = GRID, layers: int = LAYERS) -> Path:
    start, is_clip = "vision_model.", kind == "clip"
    shapes: tiny.Shapes = {
        start + "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        start + "embeddings.position_embedding.weight": (grid**2 + is_clip, WIDTH),
    }
    norms = ["post_layernorm", *["pre_layrnorm"] * is_clip]
    for number in range(layers):
        layer = f"encoder.layers.{number}."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        parts = [(f"self_attn.{p}_proj", WIDTH, WIDTH) for p in ("q", "k", "v", "out")]
        for name, inputs, outputs in (*parts, ("mlp.fc1", WIDTH, 2 * WIDTH), ("mlp.fc2", 2 * WIDTH, WIDTH)):
            shapes |= {
                f"{start}{layer}{name}.weight": (outputs, inputs),
                f"{start}{layer}{name}.bias": (outputs,),
            }
    shapes |= {f"{start}{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    if is_clip:
        shapes[start + "embeddings.class_embedding"] = (WIDTH,)
        shapes["visual_projection.weight"] = (PROJECTION, WIDTH)
    else:
        shapes[start + "embeddings.patch_embedding.bias"] = (WIDTH,)
        shapes[start + "head.probe"] = (1, 1, WIDTH)  # of what pools, which nobody here reads
    return tiny.write(path, shapes, torch.float32)


def seen_plainly(path: Path, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last states, those before the last layer, and the pooled output. Dosovitskiy et al. 2021."""
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in load_file(path).items()}
    is_clip = "visual_projection.weight" in weights

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[name + ".weight"], weights[name + ".bias"], 1e-5)

    tiles = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    x = tiles.flatten(2) @ weights["embeddings.patch_embedding.weight"].flatten(1).T
    if is_clip:
        x = torch.cat([weights["embeddings.class_embedding"].expand(len(x), 1, WIDTH), x], 1)
    else:
        x = x + weights["embeddings.patch_embedding.bias"]
    x = x + weights["embeddings.position_embedding.weight"]
    x, before = norm("pre_layrnorm", x) if is_clip else x, x
    for number in range(LAYERS):
        before, layer = x, f"encoder.layers.{number}."
        y = norm(layer + "layer_norm1", x)
        q, k, v = (
            linear(f"{layer}self_attn.{part}_proj", y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in "qkv"
        )
        looked = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v
        x = x + linear(f"{layer}self_attn.out_proj", looked.transpose(1, 2).flatten(2))
        inner = linear(layer + "mlp.fc1", norm(layer + "layer_norm2", x))
        inner = F.gelu(inner, approximate="none" if is_clip else "tanh")
        x = x + linear(layer + "mlp.fc2", inner)
    normed = norm("post_layernorm", x)
    if not is_clip:
        return normed, before, normed
    return x, before, normed[:, 0] @ weights["visual_projection.weight"].T


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_pictures_are_seen_as_published(tmp_path: Path, kind: str) -> None:
    path, run = write_encoder(tmp_path / "encoder.safetensors", kind), PlainRun(tmp_path)
    mean = torch.tensor([0.5] * 3 if kind == "siglip" else [0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.5] * 3 if kind == "siglip" else [0.26862954, 0.26130258, 0.27577711])
    pictures = torch.rand(2, SIDE, SIDE, 3)
    bytes_ = (pictures * 255).round() / 255
    expected = seen_plainly(path, ((bytes_ - mean) / deviation).movedim(-1, 1))
    found = nodes.encode_pictures(open_picture_encoder(path), pictures, "center", run=run)
    for own, other in zip(
        (found.last_hidden_state, found.penultimate_hidden_states, found["image_embeds"]),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_the_middle_of_a_picture_is_seen_or_all_of_it(tmp_path: Path) -> None:
    encoder = open_picture_encoder(write_encoder(tmp_path / "encoder.safetensors", "siglip"))
    run = PlainRun(tmp_path)
    middle = torch.rand(1, SIDE, SIDE, 3)
    sides = torch.rand(2, 1, SIDE, SIDE, 3)
    wide = torch.cat([sides[0], middle, sides[1]], dim=2)
    opaque = torch.cat([wide, torch.rand(1, SIDE, 3 * SIDE, 1)], dim=-1)
    alone = nodes.encode_pictures(encoder, middle, "center", run=run).last_hidden_state
    cropped = nodes.encode_pictures(encoder, opaque, "center", run=run).last_hidden_state
    whole = nodes.encode_pictures(encoder, wide, "none", run=run).last_hidden_state
    torch.testing.assert_close(cropped, alone, rtol=1e-4, atol=1e-5)
    assert whole.shape == alone.shape and not torch.allclose(whole, alone, atol=1e-2)


def write_style(path: Path, token: int = TOKEN) -> Path:
    shapes: tiny.Shapes = {}
    for name, inputs, outputs in (("redux_up", WIDTH, 3 * token), ("redux_down", 3 * token, token)):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return tiny.write(path, shapes, torch.float32)


def seen(count: int, pictures: int = 1) -> PictureStates:
    states = torch.randn(pictures, count, WIDTH)
    return PictureStates(states, states, states, states[:, None])


def test_a_style_stands_behind_the_prompt(tmp_path: Path) -> None:
    path, run = write_style(tmp_path / "style.safetensors"), PlainRun(tmp_path)
    style, prompt, states = open_style_model(path), Cond(torch.randn(1, 5, TOKEN)), seen(4, pictures=2)
    (found,) = nodes.apply_style((prompt,), style, states, strength=0.5, strength_type="multiply", run=run)
    weights = load_file(path)
    inner = F.silu(states.last_hidden_state @ weights["redux_up.weight"].T + weights["redux_up.bias"])
    tokens = inner @ weights["redux_down.weight"].T + weights["redux_down.bias"]
    expected = torch.cat([prompt.context, 0.5 * tokens.reshape(1, 8, TOKEN)], dim=1)
    torch.testing.assert_close(found.context, expected, rtol=1e-4, atol=1e-5)
    assert "attention_mask" not in found.options


def test_how_much_styles_are_looked_at(tmp_path: Path) -> None:
    """Of two styles: the prompt, the other style where it came first, and the new picture look at one as
    strongly as it says; a style looks at itself and at what stands before it as ever."""
    style, run = open_style_model(write_style(tmp_path / "style.safetensors")), PlainRun(tmp_path)
    once = nodes.apply_style(
        (Cond(torch.randn(1, 3, TOKEN)),), style, seen(2), strength=0.5, strength_type="attn_bias", run=run
    )
    (twice,) = nodes.apply_style(once, style, seen(4), strength=0.0, strength_type="attn_bias", run=run)
    groups = ["text"] * 3 + ["first"] * 2 + ["second"] * 4 + ["picture"]
    said: dict[str, dict[str, float]] = {
        "first": {"text": 0.5, "picture": 0.5},
        "second": dict.fromkeys(("text", "first", "picture"), 0.0),
    }
    expected = [[said.get(key, {}).get(query, 1.0) for key in groups] for query in groups]
    found = twice.options["attention_mask"]
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found.exp(), torch.tensor([expected]))
    assert twice.options["attention_mask_img_shape"] == (1, 1)
    (third,) = nodes.apply_style((twice,), style, seen(1), strength=3.0, strength_type="multiply", run=run)
    more = third.options["attention_mask"]
    assert isinstance(more, Tensor) and more.shape == (1, 11, 11)
    kept = [*range(9), 10]
    assert torch.equal(more[:, kept][:, :, kept], found) and not more[:, 9].any() and not more[:, :, 9].any()


def test_what_does_not_go_together_is_said(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    style = open_style_model(write_style(tmp_path / "style.safetensors"))
    states = seen(2)
    with pytest.raises(InputError, match=r"tokens are 8 wide.*goes with Flux\.1"):
        nodes.apply_style((Cond(torch.randn(1, 3, 8)),), style, states, strength_type="multiply", run=run)
    other = PictureStates(*[torch.randn(1, 2, 32)] * 4)
    with pytest.raises(InputError, match="32 wide and the style model reads 128.*SigLIP"):
        nodes.apply_style((Cond(torch.randn(1, 3, TOKEN)),), style, other, strength_type="multiply", run=run)
    flux = tiny.write_flux(tmp_path / "flux.safetensors")
    with pytest.raises(ModelFileError, match="no picture encoder"):
        open_picture_encoder(flux)
    with pytest.raises(ModelFileError, match="no style model"):
        open_style_model(flux)


def write_projector(path: Path, width: int, seen: int = GRID**2, reads: int = WIDTH, tokens: int = 4) -> Path:
    shapes: tiny.Shapes = {}
    for level in ("high", "mid", "low"):
        start = f"feature_embedder.{level}_"
        for name, inputs, outputs in (("embedding_linear.0", seen, tokens), ("projection", reads, width)):
            shapes |= {f"{start}{name}.weight": (outputs, inputs), f"{start}{name}.bias": (outputs,)}
        shapes |= {f"{start}layer_norm.{part}": (reads,) for part in ("weight", "bias")}
    return tiny.write(path, shapes, torch.float32)


def test_a_style_stands_before_the_prompt_in_flux(tmp_path: Path) -> None:
    """USO: layers 2, 11 and 20 from the end, each by fewer tokens, a norm and a projection."""
    run = PlainRun(tmp_path)
    model = open_diffusion_model(
        tiny.write_flux(tmp_path / "flux.safetensors", double=2, dtype=torch.float32)
    )
    path = write_projector(tmp_path / "uso.safetensors", 128)
    weights = {name.removeprefix("feature_embedder."): tensor for name, tensor in load_file(path).items()}

    def projected(level: str, states: Tensor) -> Tensor:
        fewer = weights[f"{level}_embedding_linear.0.weight"] @ states
        fewer = F.silu(fewer + weights[f"{level}_embedding_linear.0.bias"][:, None])
        scale, shift = (weights[f"{level}_layer_norm.{part}"] for part in ("weight", "bias"))
        normed = F.layer_norm(fewer, (WIDTH,), scale, shift)
        return normed @ weights[f"{level}_projection.weight"].T + weights[f"{level}_projection.bias"]

    whole = torch.randn(2, 1, 21, GRID**2, WIDTH)
    patch = open_model_patch(path)
    changed = model
    for states in whole:
        seen_states = PictureStates(states[:, -1], states[:, -2], states[:, -1], states)
        changed = nodes.attach_style(changed, patch, seen_states, run=run)
    levels = (("high", -2), ("mid", -11), ("low", -20))
    styles = [torch.cat([projected(level, states[:, at]) for level, at in levels], 1) for states in whole]

    x, context, pooled = torch.randn(2, 16, 6, 8), torch.randn(1, 5, 64), torch.randn(1, 64)
    network = Memory("cpu", "fp32").network(changed)
    inputs = Inputs.joined([network.inputs(Cond(context, pooled), SampleContext(x, x))], 2)
    times = torch.tensor([0.25, 0.75])
    expected = flux(
        lambda name: model.weights.read(name, torch.float32),
        (2, 2),
        x,
        times,
        torch.full((2,), 3.5),
        pooled.expand(2, -1),
        context.expand(2, -1, -1),
        styles=torch.cat(styles[::-1], 1).expand(2, -1, -1),
    )
    torch.testing.assert_close(network(x, times, inputs), expected, rtol=1e-4, atol=1e-4)


def test_what_uso_needs_is_said(tmp_path: Path) -> None:
    run = PlainRun(tmp_path)
    patch = open_model_patch(write_projector(tmp_path / "uso.safetensors", 128))
    flux_model = open_diffusion_model(tiny.write_flux(tmp_path / "flux.safetensors"))
    few = replace(seen(GRID**2), all_hidden_states=torch.randn(1, 12, GRID**2, WIDTH))
    with pytest.raises(InputError, match="12 layers of 9 tokens.*SigLIP so400m"):
        nodes.attach_style(flux_model, patch, few, run=run)
    other, _, _ = open_checkpoint(tiny.write_sd15(tmp_path / "sd15.safetensors"))
    with pytest.raises(InputError, match=r"for Flux\.1; Stable Diffusion 1\.5 has no place"):
        nodes.attach_style(other, patch, few, run=run)
    with pytest.raises(ModelFileError, match="no model patch that is known here"):
        open_model_patch(tiny.write_flux(tmp_path / "other.safetensors"))
