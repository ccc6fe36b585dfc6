"""Tensor names of LoRA files: the module that a tensor belongs to, and the tensor's role in its algebra.

Every trainer writes `<module><suffix>`; the suffixes differ, the roles do not. One table of suffixes serves
every dialect, whatever the module names look like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".lora_up.weight": "up",
        ".lora_down.weight": "down",
        ".lora_mid.weight": "mid",
        ".lora_B.weight": "up",
        ".lora_A.weight": "down",
        ".lora_B": "up",
        ".lora_A": "down",
        ".lora_b.weight": "up",
        ".lora_a.weight": "down",
        ".lora_b": "up",
        ".lora_a": "down",
        ".lora.up.weight": "up",
        ".lora.down.weight": "down",
        "_lora.up.weight": "up",
        "_lora.down.weight": "down",
        ".lora_linear_layer.up.weight": "up",
        ".lora_linear_layer.down.weight": "down",
        ".lora_B.bias": "up_bias",
        ".lora_up.bias": "up_bias",
        ".lora_embedding_A": "down",
        ".lora_embedding_B": "up",
        ".alpha": "alpha",
        ".scale": "gamma",
        ".dora_scale": "dora",
        ".lora_magnitude_vector.weight": "magnitude",
        ".lora_magnitude_vector": "magnitude",
        ".magnitude": "magnitude",
        ".diff": "diff",
        ".diff_b": "diff_b",
        ".w_norm": "w_norm",
        ".b_norm": "b_norm",
        ".set_weight": "set_weight",
        ".reshape_weight": "reshape_weight",
        ".hada_w1_a": "hada_w1_a",
        ".hada_w1_b": "hada_w1_b",
        ".hada_w2_a": "hada_w2_a",
        ".hada_w2_b": "hada_w2_b",
        ".hada_t1": "hada_t1",
        ".hada_t2": "hada_t2",
        ".lokr_w1": "lokr_w1",
        ".lokr_w1_a": "lokr_w1_a",
        ".lokr_w1_b": "lokr_w1_b",
        ".lokr_w2": "lokr_w2",
        ".lokr_w2_a": "lokr_w2_a",
        ".lokr_w2_b": "lokr_w2_b",
        ".lokr_t2": "lokr_t2",
        ".a1.weight": "a1",
        ".a2.weight": "a2",
        ".b1.weight": "b1",
        ".b2.weight": "b2",
        ".bm.weight": "bm",
        ".oft_blocks": "oft_blocks",
        ".oft_diag": "oft_blocks",
        ".rescale": "rescale",
        ".oft_R.weight": "oft_r",
        ".oft_R": "oft_r",
        ".oft_R.scaled_oft": "scaled_oft",
        ".boft_R": "boft_r",
        ".boft_s": "boft_s",
        ".on_input": "on_input",
        ".ia3_l": "ia3",
        ".bias_indices": "bias_indices",
        ".bias_values": "bias_values",
        ".bias_size": "bias_size",
        ".weight": "weight",
    }
)
"""Suffix → role. "weight" is (IA)³'s vector and counts only beside "on_input"."""

BY_LENGTH = tuple(sorted(SUFFIXES.items(), key=lambda item: -len(item[0])))

SIDE_TENSORS = frozenset(
    {
        "alpha",
        "gamma",
        "dora",
        "magnitude",
        "mid",
        "rescale",
        "reshape_weight",
        "scaled_oft",
        "on_input",
        "boft_s",
    }
)
"""Roles that change nothing alone: they belong to others of the same module."""

BUNDLE = "bundle_emb."
"""Prefix of text-encoder vectors (textual inversion) that travel inside a LoRA file."""

_ADAPTER = re.compile(
    r"\.(lora_[ABab]|lora_embedding_[AB]|lora_magnitude_vector|oft_R|boft_[Rs]|ia3_l"
    r"|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?)"
    r"\.(?!weight$|bias$|scaled_oft$)([^.]+)(\.weight|\.bias)?$"
)
_NUMBERED = re.compile(r"\.(?:lora_(up|down)\.(\d+)\.weight|(oft_blocks)\.(\d+))$")
_XLABS = re.compile(r"(\.processor\.(?:qkv|proj))_lora([12])\.(up|down)\.weight$")


def split_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a tensor name; None where no suffix is known.

    PEFT's adapter names (".lora_A.default.weight") are dropped, kohya's numbered parts of a fused layer
    become the roles "up.0", "down.0", "oft_blocks.0", …, and XLabs's two streams become the modules "…qkv1"
    and "…qkv2".
    """
    if found := _XLABS.search(key):
        return key[: found.start()] + found[1] + found[2], found[3]
    if found := _NUMBERED.search(key):
        return key[: found.start()], f"{found[1] or found[3]}.{found[2] or found[4]}"
    if found := _ADAPTER.search(key):
        key = f"{key[: found.start()]}.{found[1]}{found[3] or ''}"
    for suffix, role in BY_LENGTH:
        if key.endswith(suffix) and len(key) > len(suffix):
            return key.removesuffix(suffix), role
    return None
