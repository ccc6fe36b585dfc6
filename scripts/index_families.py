"""Writes docs/families.md: what holds for each family of models, as the tests hold it.

usage: .venv/bin/python scripts/index_families.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.families.bench import Narrow, measured, narrow_by_family, stated  # noqa: E402
from tests.published import fixtures  # noqa: E402

from loraloom.models.autoencoder import autoencoder_kinds  # noqa: E402
from loraloom.models.encoder import encoder_kinds  # noqa: E402
from loraloom.models.family import Family  # noqa: E402
from loraloom.models.recognition import NOT_RUN, families  # noqa: E402
from loraloom.models.text.recipes import NOT_RUN as TYPES_NOT_RUN  # noqa: E402
from loraloom.weights.formats import Format, formats  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
PARITY = ROOT / "tests" / "data" / "parity"
HEAD = """# Model families

This page is written by `scripts/index_families.py` from the families themselves and from what the tests hold
them to; a test fails when it is not current.

- *published files*: of which the tests read the real names, types and shapes
  (`tests/models/test_headers.py`): each is recognised as this family alone, every weight has its place,
  names go there and back;
- *ComfyUI's figures*: workflows whose latents and pictures are ComfyUI's (`tests/families`, on narrow models:
  the latents within 1e-4, the pictures within 1 of 255); those "on the full model" run by
  `scripts/test --all` where such a file is at hand;
- *LoRA files*: spellings that are placed completely (`tests/families/test_loras.py`), and published files
  (`tests/models/test_headers.py`);
- *trained*: a LoRA is trained, written, and found complete again (`tests/training`);
- *lines*: of code and data in the family's two files.
"""


def _list(found: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(found)) or "–"


def _cases(narrow: Narrow) -> int:
    own = len(stated(narrow.name)["cases"])
    if narrow.edit is None:
        return own
    edits = f"{narrow.name}_edit"
    return own + sum(f"{name}|latent" in measured(edits) for name in stated(edits)["cases"])


def _figures(family: Family, narrow: list[Narrow]) -> str:
    count = sum(map(_cases, narrow))
    if count:
        return f"{count} workflows"
    return "on the full model" if list(PARITY.glob(f"workflow_{family.name}.*")) else "–"


def _encoders(family: Family) -> str:
    kinds = encoder_kinds()
    return _list(
        kinds[use.encoder].title + (f" {'/'.join(size.upper() for size in use.sizes)}" if use.sizes else "")
        for recipe in family.prompts
        for use in recipe.uses
        if not use.tokens_only
    )


def _lora(family: Family, narrow: list[Narrow]) -> str:
    spelled = (file.removesuffix(".safetensors") for one in narrow for file in stated(one.name)["lora"])
    published = (fixture.name for fixture in fixtures("lora") if fixture.family == family.name)
    return _list((*spelled, *published))


def _lines(family: Family) -> int:
    folder = ROOT / "src/loraloom/models/families" / family.name
    return sum(len(path.read_text("utf-8").splitlines()) for path in folder.glob("*.py"))


def page() -> str:
    narrow = narrow_by_family()
    rows = [
        "| family | published files | ComfyUI's figures | text encoders | autoencoder | LoRA files | trained "
        "| lines |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in families():
        own = narrow.get(family.name, [])
        cells = (
            family.title,
            _list(one.name for one in fixtures("diffusion") if one.family == family.name),
            _figures(family, own),
            _encoders(family),
            autoencoder_kinds()[family.latents.autoencoder].title,
            _lora(family, own),
            "yes" if family.training else "–",
            str(_lines(family)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([HEAD, *rows, "", _not_run(), "", _storage(), ""])


def _not_run() -> str:
    return "\n".join(
        [
            "## Families that are not run",
            "",
            "Their files are known by sight and refused by name; so are the types of loaders for them:",
            f"{', '.join(dict.fromkeys(NOT_RUN.values()))}.",
            "",
            *(f"- `{kind}`: {why}." for kind, why in TYPES_NOT_RUN.items()),
        ]
    )


def _storage() -> str:
    lines = [
        "## Storage formats",
        "",
        "They are no matter of the family. `tests/families/test_storage.py` runs each family that has a",
        "narrow model from every format that can be written and from GGUF, against the same values unpacked;",
        "`tests/weights` holds each format to its figures, [models.md](models.md) tells more.",
        "",
        "| format | in files | run by every family |",
        "|---|---|---|",
    ]
    for one in formats().values():
        if type(one).refuses is not Format.refuses:
            held = "refused by name, with what to take instead"
        elif type(one).pack is not Format.pack or one.name == "gguf":
            held = "yes"
        else:
            held = "held to its figures only"
        lines.append(f"| {one.title} | {', '.join(f'`{said}`' for said in one.said) or '–'} | {held} |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
