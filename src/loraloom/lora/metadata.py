"""What a LoRA's header says of its making, in a person's words; `ss_*` (kohya) and `modelspec.*` keys."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import cast

FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("title", ("modelspec.title", "ss_output_name", "name")),
    ("author", ("modelspec.author",)),
    ("licence", ("modelspec.license",)),
    ("date", ("modelspec.date", "ss_training_started_at")),
    ("description", ("modelspec.description", "ss_training_comment")),
    ("usage", ("modelspec.usage_hint",)),
    ("tags", ("modelspec.tags",)),
    ("merged from", ("modelspec.merged_from",)),
    ("trained on", ("ss_sd_model_name", "modelspec.architecture")),
    ("base version", ("ss_base_model_version",)),
    ("stated rank", ("ss_network_dim",)),
    ("stated alpha", ("ss_network_alpha",)),
    ("network", ("ss_network_module",)),
    ("network options", ("ss_network_args",)),
    ("resolution", ("modelspec.resolution", "ss_resolution")),
    ("training pictures", ("ss_num_train_images",)),
    ("steps", ("ss_steps", "ss_max_train_steps")),
    ("epochs", ("ss_epoch", "ss_num_epochs")),
    ("learning rate", ("ss_learning_rate", "ss_unet_lr")),
    ("optimiser", ("ss_optimizer",)),
    ("noise offset", ("ss_noise_offset",)),
    ("min-SNR gamma", ("ss_min_snr_gamma",)),
    ("clip skip", ("ss_clip_skip",)),
    ("mixed precision", ("ss_mixed_precision",)),
    ("prediction", ("modelspec.prediction_type",)),
)
"""What to call a fact → the keys that may hold it, the first that says something counts."""

_MEANINGLESS = frozenset({"", "None", "null", "{}", "[]"})
MAX_SHOWN = 300


def facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """The facts that the header states, in the order in which a person wants them."""
    found: dict[str, str] = {}
    for name, keys in FACTS:
        for key in keys:
            value = " ".join(metadata.get(key, "").split())
            if value not in _MEANINGLESS:
                found[name] = _readable(key, value)[:MAX_SHOWN]
                break
    return found


def _readable(key: str, value: str) -> str:
    if key == "ss_training_started_at":
        try:
            return datetime.datetime.fromtimestamp(float(value), datetime.UTC).strftime("%Y-%m-%d")
        except (ValueError, OverflowError, OSError):
            return value
    if key in ("ss_resolution", "modelspec.resolution"):
        return re.sub(r"\(?(\d+),\s*(\d+)\)?", r"\1×\2", value)
    if key == "ss_network_args":
        return _arguments(value)
    return value


def _arguments(text: str) -> str:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(found, dict):
        return text
    return ", ".join(f"{key} {value}" for key, value in cast(dict[str, object], found).items())
