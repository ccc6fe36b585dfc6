"""The scale γ of a module: alpha / rank, by the rule of the program that trained it.

In order: an explicit `scale` tensor; the `alpha` tensor; PEFT's config (beside the file, or a copy
of it in the header), with its rank and alpha patterns and rsLoRA's alpha / √rank; else 1, which is what
files without alpha mean. kohya's and LyCORIS's trainers read alpha 0 as "alpha = rank".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from loraloom.lora.algebra import Shapes
from loraloom.lora.algebras import Found
from loraloom.lora.module_names import take_apart

DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""Header key under which diffusers stores PEFT's config as JSON, its keys prefixed by the part ("unet.r")."""

HEADER_CONFIGS = (DIFFUSERS_CONFIG, "peft_config", "lora_config", "adapter_config")
"""Header keys that may hold PEFT's config as JSON."""

HEADER_SETTINGS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""PEFT's settings that trainers also write into the header one by one, as texts."""

STATED_ALPHAS = ("ss_network_alpha", "network_alpha", "alpha")
"""Further header keys that state an alpha. They are not used: programs that fold γ into the factors, and
drop the alpha tensors, leave them as they were."""

SCALE_KEYS = (*HEADER_CONFIGS, *HEADER_SETTINGS)
"""What a file whose tensors say γ must not take over from the header of the file that it is made of."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What PEFT's config says of scales, for one part of the model ("" where it holds for all).

    start: how the factors were set before training, if not plainly. values: all that it says.
    """

    part: str
    rank: int | None
    alpha: float | None
    root_rank: bool
    ranks: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())
    alphas: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())
    start: str = ""
    values: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())

    def gamma(self, path: str, rank: int | None) -> float | None:
        """γ of a module path; None where the config does not say alpha."""
        alpha = _by_pattern(self.alphas, path, self.alpha)
        used = rank or _by_pattern(self.ranks, path, self.rank)
        if alpha is None or not used:
            return None
        return alpha / (math.sqrt(used) if self.root_rank else used)


def _by_pattern(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """PEFT's rule: a pattern is a regular expression that the end of the module path matches whole."""
    for pattern, value in patterns.items():
        try:
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path):
                return value
        except re.error:
            if path.endswith(pattern):
                return value
    return otherwise


def peft_configs(config: Mapping[str, object], metadata: Mapping[str, str]) -> tuple[PeftConfig, ...]:
    """The PEFT configs that come with a file: adapter_config.json's, or those in the header."""
    if config:
        return (_peft_config("", config),)
    found = [values for key in HEADER_CONFIGS if (values := _object(metadata.get(key)))]
    if not found and "lora_alpha" in metadata:
        found = [{key: _plain(metadata[key]) for key in HEADER_SETTINGS if key in metadata}]
    parts: dict[str, dict[str, object]] = {}
    for values in found[:1]:
        for key, value in values.items():
            part, _, name = key.rpartition(".")
            parts.setdefault(part, {})[name] = value
    return tuple(_peft_config(part, values) for part, values in parts.items())


def _object(text: str | None) -> dict[str, object]:
    """A JSON object, or {} where the text is none."""
    found = _plain(text or "")
    return cast(dict[str, object], found) if isinstance(found, dict) else {}


def _plain(text: str) -> object:
    """The value that a text of the header stands for: JSON's, or Python's words for true and false."""
    try:
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except (ValueError, RecursionError):
        return text


def unused_alpha(metadata: Mapping[str, str], rank: int) -> str | None:
    """What to say of a file without alpha whose header states one that would matter; see `STATED_ALPHAS`."""
    for key in STATED_ALPHAS:
        stated = _number(_plain(metadata.get(key, "")))
        if stated and stated != rank:
            return (
                f"no tensor says alpha; the header's {key} {stated:g} is not used, since programs that scale"
                f" the factors leave it there: if the LoRA is too weak or too strong, try {stated / rank:g}"
                " times the strength"
            )
    return None


def config_for(configs: Iterable[PeftConfig], module: str) -> tuple[PeftConfig, str] | None:
    """The config that covers a module, by its name in the file, and the module's path under that config."""
    for config in configs:
        if config.part == "" or module.startswith(config.part + "."):
            return config, take_apart(module).path
    return None


def _peft_config(part: str, values: Mapping[str, object]) -> PeftConfig:
    return PeftConfig(
        part,
        _positive_int(values.get("r")),
        _number(values.get("lora_alpha", values.get("alpha"))),
        bool(values.get("use_rslora")),
        {key: rank for key, value in _items(values.get("rank_pattern")) if (rank := _positive_int(value))},
        {
            key: alpha
            for key, value in _items(values.get("alpha_pattern"))
            if (alpha := _number(value)) is not None
        },
        start if isinstance(start := values.get("init_lora_weights"), str) else "",
        values,
    )


def _items(value: object) -> list[tuple[str, object]]:
    return list(cast(dict[str, object], value).items()) if isinstance(value, dict) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _positive_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(frozen=True, slots=True)
class Scale:
    """γ, and the rule it came from ("alpha", "alpha 0 read as rank", "PEFT config", "rsLoRA", "1", …)."""

    gamma: float
    rule: str


def scale_of(
    found: Found,
    shapes: Shapes,
    scalars: Mapping[str, float],
    config: tuple[PeftConfig, str] | None,
    comfyui: bool,
) -> Scale:
    """γ of one algebra of a module. scalars: values by role; config: PEFT's, with the module's path in it."""
    rank = found.algebra.rank(shapes)
    if not found.algebra.scaled:
        return Scale(1.0, "unscaled")
    if "gamma" in found.roles and "gamma" in scalars:
        return Scale(scalars["gamma"], "explicit scale")
    if "alpha" in found.roles and "alpha" in scalars:
        alpha = scalars["alpha"]
        if rank is None:
            return Scale(1.0, "alpha unused: no rank")
        if alpha == 0 and not comfyui:
            return Scale(1.0, "alpha 0 read as rank")
        return Scale(alpha / rank, "alpha tensors")
    if config is not None and not comfyui:
        gamma = config[0].gamma(config[1], rank)
        if gamma is not None:
            return Scale(gamma, "PEFT config, alpha/√rank" if config[0].root_rank else "PEFT config")
    return Scale(1.0, "no alpha")
