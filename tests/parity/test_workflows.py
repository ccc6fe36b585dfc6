"""Whole workflows against ComfyUI's latents and pictures, on full-size files with random weights.

`scripts/make-models` writes the files; the environment variable LORALOOM_PARITY_MODELS names their folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch

from loraloom.engine.node import Socket, node, node_types
from loraloom.result import Run
from loraloom.session import Session
from loraloom.weights.tensor_file import TensorFile
from tests.parity.graphs import Api, flux_graph, tutorial_graph

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]
DATA = Path(__file__).parent.parent / "data/parity"


def _cases(name: str) -> Api:
    return json.loads((DATA / f"workflow_{name}.json").read_text("utf-8"))


SD15, SDXL, FLUX = _cases("sd15"), _cases("sdxl"), _cases("flux")


@node("ParityPixels", category="test")
def parity_pixels() -> Annotated[torch.Tensor, Socket("IMAGE")]:
    """The input picture of the img2img case, which is no 8-bit picture."""
    return torch.from_numpy(np.load(DATA / "workflow_sd15.npz")["img2img|pixels"])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    models = os.environ.get("LORALOOM_PARITY_MODELS")
    if not models:
        pytest.skip("LORALOOM_PARITY_MODELS does not name a folder of full-size models (scripts/make-models)")
    (pixels,) = node_types(parity_pixels)
    folder = tmp_path_factory.mktemp("output")
    # The figures are ComfyUI's, which drops the attention keys of the PEFT file in the case "stack".
    with Session(
        models, output_dir=folder, dtype="fp32", compat="comfyui", nodes={"ParityPixels": pixels}
    ) as made:
        yield made


def _need(session: Session, kind: str, name: str) -> None:
    if session.folders.find(kind, name) is None:
        pytest.skip(f"{kind}/{name} is not there; scripts/make-models writes it")


def _results(run: Run) -> tuple[np.ndarray, np.ndarray]:
    latent = next(o.path for o in run.outputs if o.path.suffix == ".latent")
    pictures = np.stack([np.asarray(picture) for picture in run.images]).astype(int)
    return pictures, TensorFile(latent).read("latent_tensor", torch.float32).numpy()


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _assert_same_picture(found: np.ndarray, expected: np.ndarray) -> None:
    away = np.abs(found - expected.astype(int))
    assert (away <= 1).mean() >= 0.999
    assert away.max() <= 3


@pytest.mark.parametrize("name", SD15["cases"])
def test_sd15(session: Session, name: str) -> None:
    case = SD15["cases"][name]
    _need(session, "checkpoints", SD15["checkpoint"])
    graph = tutorial_graph(case, SD15["checkpoint"], SD15["vae"])
    if case["init"]:
        graph["pixels"] = {"class_type": "ParityPixels", "inputs": {}}
    pictures, latent = _results(session.run(graph))
    figures = np.load(DATA / "workflow_sd15.npz")
    _assert_same_picture(pictures, figures[f"{name}|image"])
    # ComfyUI keeps text encoders in fp16: a LoRA on them is rounded there, which moves latents by 5e-4.
    assert _relative(latent, figures[f"{name}|latent"]) < 1e-3


@pytest.mark.parametrize("name", SDXL["cases"])
def test_sdxl(session: Session, name: str) -> None:
    _need(session, "checkpoints", SDXL["checkpoint"])
    graph = tutorial_graph(SDXL["cases"][name], SDXL["checkpoint"], SDXL["vae"])
    pictures, latent = _results(session.run(graph))
    figures = np.load(DATA / "workflow_sdxl.npz")
    _assert_same_picture(pictures, figures[f"{name}|image"])
    assert _relative(latent, figures[f"{name}|latent"]) < 1e-3


@pytest.mark.parametrize("name", FLUX["cases"])
def test_flux(session: Session, name: str) -> None:
    _need(session, "diffusion_models", FLUX["unet"])
    run = session.run(flux_graph(FLUX["cases"][name], FLUX["unet"], FLUX["clip"], FLUX["vae"]))
    pictures, latent = _results(run)
    figures = np.load(DATA / "workflow_flux.npz")
    away = np.abs(pictures - figures[f"{name}|image"].astype(int))
    assert (away <= 2).mean() >= 0.99
    assert _relative(latent, figures[f"{name}|latent"]) <= 2e-2
    _check_receipts(run.receipts)


def _check_receipts(receipts: tuple[dict[str, Any], ...]) -> None:
    assert all(receipt["complete"] for receipt in receipts), [r["warnings"] for r in receipts]
