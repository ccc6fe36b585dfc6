"""What captions become."""

from __future__ import annotations

from pathlib import Path

import torch

from loraloom.training.captions import draw_caption
from loraloom.training.settings import FolderSettings

CAPTION = "word, a, b, c, d"


def _drawn(settings: FolderSettings, count: int = 200) -> list[str]:
    return [draw_caption(CAPTION, settings, torch.Generator().manual_seed(n)) for n in range(count)]


def test_nothing_asked_nothing_changed() -> None:
    assert set(_drawn(FolderSettings(Path(), caption_dropout=0.0))) == {CAPTION}


def test_dropout_empties_its_share() -> None:
    empty = _drawn(FolderSettings(Path(), caption_dropout=0.3)).count("")
    assert 35 <= empty <= 85


def test_kept_tags_stay_and_the_rest_is_shuffled() -> None:
    drawn = _drawn(FolderSettings(Path(), caption_dropout=0.0, shuffle=True, keep_tokens=1))
    assert all(caption.startswith("word, ") for caption in drawn)
    assert len(set(drawn)) == 24
    assert all(sorted(caption.split(", ")) == sorted(CAPTION.split(", ")) for caption in drawn)


def test_tags_drop_out_but_for_the_kept() -> None:
    drawn = _drawn(FolderSettings(Path(), caption_dropout=0.0, tag_dropout=0.5, keep_tokens=2))
    assert all(caption.startswith("word, a") for caption in drawn)
    mean = sum(len(caption.split(", ")) for caption in drawn) / len(drawn)
    assert 3.2 < mean < 3.8


def test_a_setting_does_not_change_later_draws() -> None:
    one, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    draw_caption(CAPTION, FolderSettings(Path()), one)
    draw_caption(CAPTION, FolderSettings(Path(), shuffle=True, tag_dropout=0.2), other)
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))
