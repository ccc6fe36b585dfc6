"""The recipe of the demo model, from drawn shapes to a checkpoint that draws, with the narrowest networks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from loraloom.demo.files import MODELS, WORKFLOW
from loraloom.models.text.clip import ClipConfig
from loraloom.session import Session

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_model"
NAMES = ("red apple", "rose", "teapot")
"""The last one may be held out."""


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """Imports the recipe's modules by name; they are scripts beside each other, not a package."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield importlib.import_module
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(RECIPE)):
            del sys.modules[name]


def shape(number: int, side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), "white")
    box = (side // 4, side // 5, side * 3 // 4, side * 4 // 5)
    colour = ((200, 20, 30), (20, 140, 60), (240, 180, 40))[number % 3]
    draw = ImageDraw.Draw(picture)
    if number % 2:
        draw.rectangle(box, fill=colour)
    else:
        draw.ellipse(box, fill=colour)
    return picture


@pytest.fixture(scope="module")
def work(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose pictures are drawn already, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("work")
    pictures, state = recipe("pictures"), recipe("state")
    masters = [[np.asarray(shape(c + s, pictures.MASTER_SIDE)) for s in range(2)] for c in range(3)]
    strange = [np.asarray(shape(c, pictures.SIDE)) for c in range(2)]
    tensors = {"masters": torch.from_numpy(np.stack(masters)), "strange": torch.from_numpy(np.stack(strange))}
    state.write_tensors(folder / "masters.safetensors", tensors, {})
    return folder


def small(recipe: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of a few steps; three concepts, of one of which the flat picture is held out."""
    stages, dataset, pictures = recipe("stages"), recipe("dataset"), recipe("pictures")
    concepts = [pictures.Concept(name, "", (f"a {name}",)) for name in NAMES]
    monkeypatch.setattr(dataset, "fetch", lambda folder: {"labels": folder})
    monkeypatch.setattr(dataset, "read_concepts", lambda table, labels: concepts)
    monkeypatch.setattr(recipe("text"), "STEPS", 2)
    vae = recipe("autoencoder").AutoencoderRecipe(widths=(32, 32, 32, 32), steps=3, decoder_steps=2, batch=1)
    text = ClipConfig(vocabulary=49408, positions=77, width=64, layers=1, inner=32, quick_gelu=True)
    unet = recipe("diffusion").DiffusionRecipe(widths=(32, 32, 32, 32), text=text, steps=2, batch=2)
    machine = recipe("loop").Machine(save_every=0.0)
    return stages.Run(work, machine, vae, unet)


def test_all_stages_make_a_checkpoint_that_draws(
    recipe: Any, work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, stages = small(recipe, work, monkeypatch), recipe("stages")
    for stage in stages.ALL.values():
        stage(run)
    (tmp_path / "checkpoints").mkdir()
    (work / "loraloom-demo.safetensors").rename(tmp_path / "checkpoints" / "tiny.safetensors")
    with Session([tmp_path, MODELS], output_dir=tmp_path / "output", dtype="fp32") as session:
        changes = {"1.ckpt_name": "tiny.safetensors", "5.width": 64, "5.height": 64, "6.steps": 1}
        graph: dict[str, Any] = session.prepare(WORKFLOW, set=changes).to_api()
        graph["6"]["inputs"]["model"] = ["1", 0]
        graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["1", 1]
        assert session.run(graph).images[0].size == (64, 64)


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    recipe: Any, work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, autoencoder = small(recipe, work, monkeypatch), recipe("autoencoder")
    pictures = recipe("dataset").autoencoder_pictures(recipe("dataset").load(work))

    def trained(name: str, *stops: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            monkeypatch.setattr(autoencoder, "falling_rate", partial(rate_until, stop))
            with pytest.raises(KeyboardInterrupt):
                autoencoder.train(pictures, folder, run.vae, run.machine)
        return recipe("state").read_tensors(folder / autoencoder.STATE)[0]

    whole, parts = trained("whole", 2), trained("parts", 1, 2)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def rate_until(stop: int, step: int, *_: int) -> float:
    """A constant rate that stops the training before step `stop`."""
    if step >= stop:
        raise KeyboardInterrupt
    return 1.0
