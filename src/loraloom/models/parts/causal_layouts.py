"""How files lay language models out, and what their shapes say. No torch.

Native names are Hugging Face's of a text model under "model.", of a vision tower under "visual.".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loraloom.errors import ModelFileError
from loraloom.models.encoder import Layout, NamedTensor, Tokenizer, Vocabulary
from loraloom.models.family import Blueprint, Shapes
from loraloom.models.library_class import library_class
from loraloom.models.parts.encoder_layouts import depth, placements

if TYPE_CHECKING:
    from torch import nn

    from loraloom.weights.source import WeightSource

TOKENS = "model.embed_tokens.weight"

PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
"""What files put before the names of the text model, the most specific first."""

TOWER_PREFIXES = ("model.visual.", "visual.")

TOWER_WIDTHS = (1024, 1152, 1280)

FIRST = "model.layers.0."

QWEN_PICTURE = 151655
"""What stands for a picture."""


def language_model(has: Sequence[str] = (), lacks: Sequence[str] = (), carries: str = "") -> Layout:
    """A language model that has tensors of these native names and lacks others. carries: the tensor that
    holds its tokenizer, without which the file cannot be used (ModelFileError)."""

    def layout(shapes: Shapes) -> Sequence[NamedTensor] | None:
        prefix = next((p for p in PREFIXES if f"{p}layers.0.self_attn.q_proj.weight" in shapes), None)
        if prefix is None:
            return None
        named = [NamedTensor(_native(key, prefix), key) for key in shapes]
        names = {tensor.name for tensor in named}
        is_kind = TOKENS in names and all(name in names for name in has)
        if not is_kind or any(name in names for name in lacks):
            return None
        if carries and carries not in names:
            raise ModelFileError(
                f"a language model without its tokenizer: files for ComfyUI hold it as the tensor {carries!r}"
            )
        return named

    return layout


def _native(key: str, prefix: str) -> str:
    for tower in TOWER_PREFIXES:
        if key.startswith(tower):
            return "visual." + key[len(tower) :]
    if key.startswith(prefix) and key[len(prefix) :].startswith(("layers.", "embed_tokens.", "norm.")):
        return "model." + key[len(prefix) :]
    return key


def measure(shapes: Shapes) -> tuple[int, int]:
    return shapes[TOKENS][-1], depth(shapes, "model.layers.")


def text_config(shapes: Shapes, head: int = 128, **others: object) -> dict[str, object]:
    """The configuration of a text model in transformers' words. head: width of a head, where no norm of a
    head says it."""
    vocabulary, width = shapes[TOKENS]
    head = shapes.get(f"{FIRST}self_attn.q_norm.weight", (head,))[0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{FIRST}mlp.gate_proj.weight"][0],
        "num_hidden_layers": depth(shapes, "model.layers."),
        "num_attention_heads": shapes[f"{FIRST}self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{FIRST}self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        "pad_token_id": None,
        **others,
    }


def tower_heads(width: int) -> int:
    """Heads of a vision tower, which no shape says: 16 in all published ones; 32 wide in others."""
    return 16 if width in TOWER_WIDTHS else max(width // 32, 1)


def causal_blueprint(
    prefix: str,
    shapes: Shapes,
    classes: Sequence[str],
    config: Mapping[str, object],
    tower: Mapping[str, object] | None = None,
    unused: Sequence[str] = (),
) -> Blueprint:
    """A text model, with a vision tower where the file has one. Files may lack the final norm, where only
    states before it are used. classes: of the text model and its configuration, then those of the tower."""
    has_norm = "model.norm.weight" in shapes

    def make() -> nn.Module:
        from huggingface_hub.errors import StrictDataclassError
        from torch import nn

        try:
            module = _built(classes, config, tower)
        except StrictDataclassError as error:  # what transformers' configurations say of wrong values
            raise ValueError(str(error)) from error
        if not has_norm:
            module.get_submodule("model").norm = nn.Identity()
        return module

    patterns = ("*.lm_head.*", "*.rotary_emb.inv_freq", *(f"{prefix}{pattern}" for pattern in unused))
    whole = dict(config) if tower is None else {**config, "tower": dict(tower)}
    return Blueprint(whole, make, placements(prefix, shapes), patterns)


def _built(
    classes: Sequence[str], config: Mapping[str, object], tower: Mapping[str, object] | None
) -> nn.Module:
    from loraloom.models.text.causal import CausalText

    model, config_of, *vision = (library_class(path) for path in classes)
    visual = None
    if tower is not None:
        vision_model, vision_config_of = vision
        visual = vision_model(vision_config_of(**tower))
    return CausalText(model(config_of(**config)), visual)


def qwen_tokenizer(weights: WeightSource) -> Tokenizer:
    from loraloom.models.text.vocabularies import qwen_tokenizer as make

    del weights
    return make()


QWEN_VOCABULARY = Vocabulary(qwen_tokenizer, pad=151643, turn=151644, user=(872, 198), stops=(151643, 151645))
"""Padding is the end of a text; a turn of the user's begins with "user" and a line break."""
