"""A tiny model and a tiny dataset, and settings that train on them in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from loraloom.training.settings import (
    AdapterSettings,
    FolderSettings,
    ModelSettings,
    NoiseSettings,
    OptimizerSettings,
    RunSettings,
    Settings,
    ValidationSettings,
)
from tests.tiny_models import write_sd15

MakeSettings = Callable[..., Settings]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small to share out: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd15(tmp_path_factory.mktemp("base") / "tiny.safetensors")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kohya's layout: two folders, one caption file per picture of the first."""
    root = tmp_path_factory.mktemp("pictures")
    for folder, count in (("2_redword thing", 3), ("1_blueword thing", 2)):
        (root / folder).mkdir()
        for number in range(count):
            picture = Image.new("RGB", (64, 64 if number else 96), (200, 40 * number, 30))
            picture.putpixel((number, 3), (0, 255, 0))
            picture.save(root / folder / f"{number}.png")
            if folder.startswith("2"):
                (root / folder / f"{number}.txt").write_text(f"redword, a thing, number {number}", "utf-8")
    return root


@pytest.fixture
def make_settings(tmp_path: Path, checkpoint: Path, pictures: Path) -> MakeSettings:
    def make(
        adapter: AdapterSettings | None = None,
        steps: int = 4,
        output: Path | None = None,
        accumulate: int = 1,
    ) -> Settings:
        return Settings(
            name="tiny",
            output=output or tmp_path / "run",
            model=ModelSettings(checkpoint),
            data=(FolderSettings(pictures, trigger="redword", shuffle=True, keep_tokens=1, flip=True),),
            adapter=adapter or AdapterSettings(rank=2, alpha=1.0),
            noise=NoiseSettings(offset=0.05),
            optimizer=OptimizerSettings(rate=1e-2),
            run=RunSettings(
                steps=steps,
                batch=2,
                resolution=64,
                bucket_step=16,
                dtype="fp32",
                device="cpu",
                save_every=2,
                accumulate=accumulate,
            ),
            validation=ValidationSettings(share=0.2, every=2, draws=2),
        )

    return make
