"""Adapters that are known by the names of their tensors but not applied: messages say what they are.

A module that holds any of their tensors is left alone as a whole: its other tensors look like a plain LoRA's
(AdaLoRA) and would mean something else without those.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

_KINDS: tuple[tuple[str, str], ...] = (
    (r"vera_(?:lambda_[bd]|[AB])", "VeRA"),
    (r"pvera_\w+", "PVeRA"),
    (r"lora_E", "AdaLoRA"),
    (r"randlora_\w+", "RandLoRA"),
    (r"vblora_\w+", "VB-LoRA"),
    (r"fourierft_spectrum", "FourierFT"),
    (r"waveft_spectrum", "WaveFT"),
    (r"hra_u", "HRA"),
    (r"hira_\w+", "HiRA"),
    (r"c3a_kernel", "C3A"),
    (r"(?:miss|bone)_block", "MiSS"),
    (r"shira_weight", "SHiRA"),
    (r"road_(?:theta|alpha)", "RoAd"),
    (r"gralora_\w+", "GraLoRA"),
    (r"delora_\w+", "DeLoRA"),
    (r"glora_[A-E]", "GLoRA as PEFT writes it"),
    (r"psoft_R", "PSOFT"),
    (r"poly_(?:lora_[AB]|router)", "Poly"),
    (r"ln_tuning_layers", "LN tuning"),
    (r"trainable_tokens_\w+", "trainable tokens"),
    (r"oft_r", "OFT of PEFT before 0.16"),
    (r"modules_to_save", "a module trained as a whole (PEFT's modules_to_save)"),
    (
        r"(?:lambda_layer$|base_lambda$|base_[pq]$|[pq]_layer(?=\.weight$))",
        "T-LoRA, whose rank depends on the step",
    ),
)

_UNSUPPORTED = re.compile(
    r"^(?P<module>.*?)\.(?:" + "|".join(f"({pattern})" for pattern, _ in _KINDS) + r")(?:\.|$)"
)


def unsupported_kind(key: str) -> tuple[str, str] | None:
    """(module, what it is) of a tensor of an adapter that is not applied; None for all others."""
    found = _UNSUPPORTED.match(key)
    if found is None:
        return None
    index = next(number for number, group in enumerate(found.groups()[1:]) if group is not None)
    return found["module"], _KINDS[index][1]


def count_unsupported(unsupported: Mapping[str, str]) -> dict[str, int]:
    """Tensor name → kind, as kind → number of tensors."""
    return dict(Counter(unsupported.values()))


def say_unsupported(counts: Mapping[str, int]) -> str:
    """ "48 tensors are VeRA, which is not applied here"."""
    return "; ".join(
        f"{count} tensors are {kind}, which is not applied here" for kind, count in counts.items()
    )
