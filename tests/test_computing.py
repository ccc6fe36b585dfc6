"""What users choose about computing: the same picture otherwise, or another one where that is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraloom.cli.main import exit_code_of
from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.models.autoencoder_network import TinyDecoder
from loraloom.models.checkpoint import open_autoencoder
from loraloom.models.computing import USUAL, Computing
from loraloom.models.residency.memory import Memory
from loraloom.models.tiny_autoencoder import LATENTS
from loraloom.nodes.autoencoding import vae_decode
from loraloom.result import Run
from loraloom.runtime.services import services
from loraloom.session import NodeFailure, Session
from tests.demo_models import write_demo_models
from tests.models.test_tiny_autoencoder import halves, written
from tests.nodes.runs import PlainRun

PAGE = Path(__file__).parent.parent / "examples/lora-tutorial.md"
SMALL = {"EmptyLatentImage.width": 64, "EmptyLatentImage.height": 64, "KSampler.steps": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_demo_models(root)
    return root


def drawn(models: Path, output: Path, computing: Computing, steps: int = 2) -> tuple[Run, int]:
    """A run, and the bytes of all weights afterwards."""
    with Session(models, output_dir=output, dtype="fp32", computing=computing) as session:
        result = session.run(PAGE, workflow=1, set=SMALL | {"KSampler.steps": steps})
        return result, session.memory.resident_bytes


def distance(one: Run, other: Run) -> int:
    """The largest difference of two pictures, of 255."""
    first, second = (np.asarray(result.images[0], np.int16) for result in (one, other))
    return int(np.abs(first - second).max())


def test_narrow_weights_give_the_same_picture_in_less_memory(models: Path, tmp_path: Path) -> None:
    usual, whole = drawn(models, tmp_path, USUAL)
    narrow, less = drawn(models, tmp_path, Computing(narrow_weights=True))
    assert distance(usual, narrow) <= 1
    assert less < 0.6 * whole  # the files are fp16


def test_another_kernel_gives_the_same_picture(models: Path, tmp_path: Path) -> None:
    usual, _ = drawn(models, tmp_path, USUAL)
    plain, _ = drawn(models, tmp_path, Computing(attention="math"))
    assert distance(usual, plain) <= 1


def test_steps_that_are_left_out_are_said(models: Path, tmp_path: Path) -> None:
    result, _ = drawn(models, tmp_path, Computing(fast=("steps",)), steps=6)
    (said,) = [warning for warning in result.warnings if "--fast" in warning]
    assert said.endswith("of 6 evaluations were left out")


def test_merged_tokens_are_said_also_in_the_picture(models: Path, tmp_path: Path) -> None:
    usual, _ = drawn(models, tmp_path, USUAL)
    result, _ = drawn(models, tmp_path, Computing(fast=("tokens",)))
    (said,) = result.fast
    assert said["name"] == "tokens" and "50%" in str(said["said"])
    assert distance(usual, result) > 0 and usual.to_json().keys() == result.to_json().keys() - {"fast"}
    with Image.open(result.outputs[0].path) as picture:
        assert json.loads(picture.info["loraloom"])["fast"] == [said]
    assert "fast" not in json.loads(usual.images[0].info["loraloom"])


def test_a_tiny_autoencoder_decodes(models: Path, tmp_path: Path) -> None:
    fast = Computing(fast=("vae",))
    with pytest.raises(NodeFailure, match=r"taesd_decoder\.safetensors.*vae_approx"):
        drawn(models, tmp_path, fast)
    copied = tmp_path / "models"
    shutil.copytree(models, copied)
    path = written(copied / "vae_approx", "taesd", "decoder", halves()[1])
    run = PlainRun(tmp_path)
    memory = Memory("cpu", "fp32", computing=fast)
    run.services = replace(services(run), folders=ModelFolders([copied]), memory=memory)
    samples = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    vae = open_autoencoder(copied / "vae/vae-ft-mse-840000-ema-pruned.safetensors")
    given = vae_decode({"samples": samples, "decoders": ("kl", "taesd")}, vae, run=run)
    decoder = TinyDecoder(path, 4, torch.float32, torch.device("cpu"))
    wanted = torch.stack([decoder(one) for one in samples * LATENTS["taesd"][0]])
    torch.testing.assert_close(given, wanted)
    result, _ = drawn(copied, tmp_path, fast)
    assert path.name in str(result.fast[0]["said"])


def test_a_latent_that_nobody_sampled_is_decoded_by_its_vae(models: Path, tmp_path: Path) -> None:
    graph = {
        "vae": {
            "class_type": "VAELoader",
            "inputs": {"vae_name": "vae-ft-mse-840000-ema-pruned.safetensors"},
        },
        "picture": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 9},
        },
        "latent": {"class_type": "VAEEncode", "inputs": {"pixels": ["picture", 0], "vae": ["vae", 0]}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["latent", 0], "vae": ["vae", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "a"}},
    }
    with Session(models, output_dir=tmp_path, dtype="fp32", computing=Computing(fast=("vae",))) as session:
        assert not session.run(json.dumps(graph)).fast


def test_merged_tokens_and_compiled_blocks_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        Computing(compiled=True, fast=("tokens",))


def test_attention_that_is_not_there_is_an_error(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--models", str(models), "--output-dir", str(tmp_path), "--device", "cpu"]
    assert exit_code_of(["run", str(PAGE), "--workflow", "1", "--attention", "sage", *where]) == 2
    assert "there is no sage attention on cpu" in capsys.readouterr().err
