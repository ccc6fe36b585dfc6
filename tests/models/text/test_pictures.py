"""Pictures in prompts against ComfyUI's figures, and where their tokens stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import narrow_models as narrow
from tests.conftest import NarrowFile
from tests.models.text import figures
from torch import Tensor

from loraloom.errors import ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_text_encoders
from loraloom.models.encoder import Vision
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.models.text.pictures import LARGEST, SMALLEST, SeenPicture, patches, positions
from loraloom.models.text.templates import PICTURE

NOWHERE = ModelFolders(())
VISION = Vision(patch=14, mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0), token=7)


def seen(rows: int, columns: int) -> SeenPicture:
    return SeenPicture(torch.zeros(rows * columns, 4), rows, columns)


def test_a_picture_takes_as_much_room_as_its_longer_side() -> None:
    found = positions([2, seen(2, 3), 1])[:, 0].T.tolist()
    assert found[:2] == [[0, 0, 0], [1, 1, 1]]
    assert found[2:8] == [[2, 2 + row, 2 + column] for row in range(2) for column in range(3)]
    assert found[8:] == [[5, 5, 5]]


def test_patches_go_by_merged_blocks() -> None:
    picture = torch.arange(56 * 84, dtype=torch.float32).view(1, 56, 84, 1).expand(-1, -1, -1, 3)
    values, rows, columns = patches(picture, VISION)
    assert (rows, columns) == (4, 6) and values.shape == (24, 3 * 2 * 14 * 14)
    corners = values.view(24, 3, 2, 14, 14)[:, 0, 0, 0, 0]
    first_block = [0, 14, 14 * 84, 14 * 84 + 14]
    assert corners[:4].tolist() == first_block
    assert corners[4:8].tolist() == [corner + 28 for corner in first_block]
    assert torch.equal(values.view(24, 3, 2, -1)[:, :, 0], values.view(24, 3, 2, -1)[:, :, 1])


@pytest.mark.parametrize("size", [(1, 1), (10, 400), (5000, 3000), (30, 29)])
def test_every_size_becomes_one_that_towers_read(size: tuple[int, int]) -> None:
    _, rows, columns = patches(torch.zeros(1, *size, 3), VISION)
    assert rows % 2 == columns % 2 == 0
    assert SMALLEST <= rows * columns * 14 * 14 <= LARGEST


def picture(name: str) -> Tensor:
    return torch.from_numpy(figures.measured()[name])


def test_qwen_image_sees_what_it_edits(narrow_file: NarrowFile) -> None:
    clip = open_text_encoders((narrow_file(narrow.write_qwen25vl),), "qwen_image")
    (cond,), _ = encode_prompt(
        Memory("cpu", "fp32"), clip, f"{PICTURE}make it winter", NOWHERE, [picture("qwen_edit_edit|pic|A")]
    )
    assert figures.distance(cond.context, "qwen_edit_edit|vl_one") < 1e-5


def test_rows_of_pictures_may_be_left_out(narrow_file: NarrowFile) -> None:
    clip = open_text_encoders((narrow_file(narrow.write_qwen3vl_8b),), "qwen_image")
    memory, text = Memory("cpu", "fp32"), f"<image1>{PICTURE}make it winter"
    shown = [picture("qwen_image21_edit|pic|B")]
    (kept,), _ = encode_prompt(memory, clip, text, NOWHERE, shown)
    assert figures.distance(kept.context, "qwen_image21_edit|keep_vision") < 1e-5 and not kept.extras
    (cond,), _ = encode_prompt(memory, clip, text, NOWHERE, shown, keep_pictures=False)
    assert cond.extras["image_slots"].tolist() == [[8]]
    assert torch.equal(cond.context, torch.cat([kept.context[:, :8], kept.context[:, -9:]], dim=1))


def test_encoders_that_see_nothing_say_so(narrow_file: NarrowFile) -> None:
    clip = open_text_encoders((narrow_file(narrow.write_qwen3_4b),), "lumina2")
    shown = [torch.zeros(1, 8, 8, 3)]
    (cond,), (warning,) = encode_prompt(Memory("cpu", "fp32"), clip, f"{PICTURE}a", NOWHERE, shown)
    assert "z_image see no pictures" in warning.message
    (same,), _ = encode_prompt(Memory("cpu", "fp32"), clip, f"{PICTURE}a", NOWHERE)
    assert torch.equal(cond.context, same.context)


def test_a_file_without_a_tower_says_so(tmp_path: Path) -> None:
    made = narrow.qwen25vl(1, vocabulary=151656)
    shapes = {name for name in made.known if name.startswith("visual.")}
    made.known = {name: entry for name, entry in made.known.items() if name not in shapes}
    clip = open_text_encoders((made.write(tmp_path / "text_only.safetensors"),), "qwen_image")
    memory = Memory("cpu", "fp32")
    encode_prompt(memory, clip, "a", NOWHERE)
    with pytest.raises(ModelFileError, match="no vision tower"):
        encode_prompt(memory, clip, PICTURE, NOWHERE, [torch.zeros(1, 28, 28, 3)])
