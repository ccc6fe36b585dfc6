"""Whole workflows of every family against ComfyUI's latents and pictures, on narrow models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loraloom.session import Session
from loraloom.weights.tensor_file import TensorFile
from tests.families.bench import Shelf, measured, narrow_models, run_case, stated

CASES = [(family, case) for family in narrow_models() for case in stated(family)["cases"]]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_workflow_gives_comfyuis_picture(family: str, case: str, session: Session, shelf: Shelf) -> None:
    run = run_case(session, shelf, narrow_models()[family], case)
    figures = measured(family)
    path = next(output.path for output in run.outputs if output.path.suffix == ".latent")
    latent = TensorFile(path).read("latent_tensor", torch.float32).numpy()
    expected = figures[f"{case}|latent"].reshape(latent.shape)
    assert np.linalg.norm(latent - expected) <= 1e-4 * np.linalg.norm(expected)
    pictures = np.stack([np.asarray(picture) for picture in run.images]).astype(int)
    away = np.abs(pictures - figures[f"{case}|image"].astype(int))
    assert (away <= 1).mean() >= 0.999 and away.max() <= 3
