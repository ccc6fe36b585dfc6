"""Pictures that a model is told beside its prompt: Stable unCLIP and SDXL Revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_picture_encoder
from loraloom.models.families.sd20.network import MERGED_NOISE
from loraloom.models.parts.picture_vectors import picture_vector
from loraloom.models.picture_encoders import PictureStates
from loraloom.models.recognition import recognise
from loraloom.nodes import picture_styles as nodes
from loraloom.result import Run
from loraloom.sampling.noise import generator
from loraloom.sampling.types import Cond
from loraloom.session import NodeFailure, Session
from loraloom.weights.header import read_header
from tests import tiny_models as tiny
from tests.nodes.runs import PlainRun
from tests.nodes.test_picture_styles import LAYERS, PROJECTION, SIDE, WIDTH, write_encoder

Api = dict[str, Any]


def open_clip(path: Path) -> dict[str, Tensor]:
    """The tensors of an encoder in Hugging Face's layout as OpenCLIP names them."""
    given = {name.removeprefix("vision_model."): tensor for name, tensor in load_file(path).items()}
    found = {
        "class_embedding": given["embeddings.class_embedding"],
        "conv1.weight": given["embeddings.patch_embedding.weight"],
        "positional_embedding": given["embeddings.position_embedding.weight"],
        "proj": given["visual_projection.weight"].T.contiguous(),
    }
    for part in ("weight", "bias"):
        found[f"ln_pre.{part}"] = given[f"pre_layrnorm.{part}"]
        found[f"ln_post.{part}"] = given[f"post_layernorm.{part}"]
        for number in range(LAYERS):
            ours, theirs = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
            projections = [given[f"{theirs}.self_attn.{p}_proj.{part}"] for p in "qkv"]
            found[f"{ours}.attn.in_proj_{part}"] = torch.cat(projections)
            for name, other in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{ours}.{name}.{part}"] = given[f"{theirs}.{other}.{part}"]
    return found


def test_openclips_layout_is_the_same_encoder(tmp_path: Path) -> None:
    usual = write_encoder(tmp_path / "usual.safetensors", "clip")
    other = tmp_path / "other.safetensors"
    words = {"token_embedding.weight": torch.zeros(4, 4)}  # of its other half
    save_file({f"visual.{name}": tensor for name, tensor in open_clip(usual).items()} | words, other)
    pictures, run = torch.rand(2, SIDE, SIDE, 3), PlainRun(tmp_path)
    one, two = (
        nodes.encode_pictures(open_picture_encoder(path), pictures, "center", run=run)
        for path in (usual, other)
    )
    for name in ("last_hidden_state", "penultimate_hidden_states", "image_embeds"):
        torch.testing.assert_close(one[name], two[name])


def seen(*embeddings: Tensor) -> PictureStates:
    nothing = torch.zeros(1)
    return PictureStates(nothing, nothing, torch.stack(embeddings), nothing)


def noisy(embedding: Tensor, amount: float, seed: int) -> Tensor:
    """As diffusers' Stable unCLIP pipeline makes it noisy; its table is multiplied up in float32."""
    level = torch.tensor([round(999 * amount)])
    noise = torch.randn(1, len(embedding), generator=generator(seed - 10))
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    mixed = scheduler.add_noise(embedding[None], noise, cast(Any, level))
    told = get_timestep_embedding(level, len(embedding), flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([mixed, told], dim=1)


def test_an_embedding_is_made_noisy_as_the_model_was_trained() -> None:
    first, second = torch.randn(2, 24, generator=generator(1)).unbind()
    plain = (Cond(torch.zeros(1, 1, 1)),)
    assert picture_vector(plain[0], 24, 7) is None
    assert nodes.tell_pictures(plain, seen(first), strength=0.0) == plain
    (one,) = nodes.tell_pictures(plain, seen(first), strength=0.5, noise_augmentation=0.3)
    made = picture_vector(one, 24, 7)
    assert made is not None
    torch.testing.assert_close(made, 0.5 * noisy(first, 0.3, 7), rtol=1e-4, atol=1e-4)
    (both,) = nodes.tell_pictures((one,), seen(second), strength=2.0)
    made = picture_vector(both, 24, 7, MERGED_NOISE)
    merged = 0.5 * noisy(first, 0.3, 7) + 2.0 * noisy(second, 0.0, 7)
    assert made is not None
    torch.testing.assert_close(made, noisy(merged[0, :24], 0.05, 7), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"embeddings are 24 wide and this model reads 32.*1280: ViT-bigG"):
        picture_vector(one, 32, 7)


def write_unclip(path: Path) -> Path:
    """A small Stable Diffusion 2 that is told a picture, with its encoder in OpenCLIP's layout."""
    plain = load_file(tiny.write_sd20(path, dtype=torch.float32))
    unet = "model.diffusion_model."
    narrow = tiny.unet_shapes(width=64, context=128, linear=True, label=2 * PROJECTION)
    eyes = open_clip(write_encoder(path.with_name("eyes.safetensors"), "clip"))
    own = {name: tensor for name, tensor in plain.items() if not name.startswith(unet)}
    own |= {unet + name: tiny.tensor(name, shape) for name, shape in narrow.items()}
    save_file(own | {f"embedder.model.visual.{name}": tensor for name, tensor in eyes.items()}, path)
    return path


def workflow(loader: str, file: str, eyes: list[object], pictures: int, level: float = 0.0) -> Api:
    graph: Api = {
        "load": {"class_type": loader, "inputs": {"ckpt_name": file}},
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a cat"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "u"}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
    }
    positive: list[object] = ["words", 0]
    for number in range(pictures):
        color = 0xFF0000 >> 8 * number
        graph[f"picture{number}"] = {
            "class_type": "EmptyImage",
            "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1, "color": color},
        }
        graph[f"see{number}"] = {
            "class_type": "CLIPVisionEncode",
            "inputs": {"clip_vision": eyes, "image": [f"picture{number}", 0], "crop": "center"},
        }
        told = {"conditioning": positive, "clip_vision_output": [f"see{number}", 0]}
        graph[f"tell{number}"] = {
            "class_type": "unCLIPConditioning",
            "inputs": {**told, "strength": 1.0, "noise_augmentation": level},
        }
        positive = [f"tell{number}", 0]
    sampler = {
        "seed": 3,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    links = {
        "model": ["load", 0],
        "positive": positive,
        "negative": ["words", 0],
        "latent_image": ["latent", 0],
    }
    graph["sample"] = {"class_type": "KSampler", "inputs": {**sampler, **links}}
    return graph


def test_a_checkpoint_with_eyes_draws_what_it_is_told(tmp_path: Path) -> None:
    file = write_unclip(tmp_path / "checkpoints" / "unclip.safetensors")
    assert recognise(read_header(file)).family.name == "sd20"
    with Session(tmp_path, output_dir=tmp_path / "out", dtype="fp32") as session:
        runs = [
            session.run(workflow("unCLIPCheckpointLoader", file.name, ["load", 3], pictures, level))
            for pictures, level in ((0, 0.0), (1, 0.0), (1, 0.5), (2, 0.0), (2, 0.0))
        ]
    drawn = [run.images[0].tobytes() for run in runs]
    assert len(set(drawn)) == 4 and drawn[3] == drawn[4]
    assert not any(run.warnings for run in runs)


@pytest.mark.parametrize(
    ("write", "is_told"), [(tiny.write_sdxl, True), (tiny.write_refiner, True), (tiny.write_sd15, False)]
)
def test_other_models_are_told_or_say_that_they_are_not(
    tmp_path: Path, write: tiny.Writer, is_told: bool
) -> None:
    file = write(tmp_path / "checkpoints" / "model.safetensors")
    eyes = write_encoder(tmp_path / "clip_vision" / "eyes.safetensors", "clip")
    wider = load_file(eyes) | {"visual_projection.weight": tiny.tensor("wider", (128, WIDTH))}
    save_file(wider, eyes.with_name("wider.safetensors"))
    with Session(tmp_path, output_dir=tmp_path / "out", dtype="fp32") as session:
        graph = workflow("CheckpointLoaderSimple", file.name, ["eyes", 0], 1)
        graph["eyes"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": eyes.name}}
        if is_told:
            with pytest.raises(NodeFailure, match=rf"embeddings are {PROJECTION} wide and this model reads"):
                session.run(graph)
            graph["eyes"]["inputs"] = {"clip_name": "wider.safetensors"}
            drawn: list[Run] = []
            for pictures in (1, 2, 0):
                other: Api = workflow("CheckpointLoaderSimple", file.name, ["eyes", 0], pictures)
                other["eyes"] = graph["eyes"]
                drawn.append(session.run(other))
            assert len({run.images[0].tobytes() for run in drawn}) == 3
            assert not any(run.warnings for run in drawn)
        else:
            (said,) = session.run(graph).warnings
            assert "Stable Diffusion 1.5 model is not told of pictures" in said
