"""A prompt → CONDITIONING, the way each family uses its text encoders.

Words of a weight other than 1 move away from (or towards) what the empty prompt gives at their place:
z = z_empty + weight · (z - z_empty), as ComfyUI weighs prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.folders import ModelFolders
from loraloom.models.handles import TextEncoders, TextPart
from loraloom.models.text.clip import ClipText, Encoded
from loraloom.models.text.embeddings import EmbeddingFinder, PromptWarning
from loraloom.models.text.t5 import T5Text
from loraloom.models.text.tokens import (
    CLIP_L_RULES,
    OPEN_CLIP_RULES,
    T5_RULES,
    Chunk,
    TokenRules,
    Tokens,
    tokenize,
)
from loraloom.sampling.types import Cond, Conditioning

EMPTY_PROMPTS = 16
"""How many states of an encoder (LoRA stacks, layers, lengths) keep what the empty prompt gives."""


class TextMemory(Protocol):
    """What encoding needs of the memory: role → ClipText or T5Text with the LoRA stack applied."""

    @property
    def device(self) -> torch.device: ...
    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]: ...


TextModule: TypeAlias = "ClipText | T5Text"


@dataclass(frozen=True, slots=True)
class EncoderUse:
    """How a family uses one of its encoders.

    key: what ComfyUI calls its tokens. layer: counted from the end; None: the last, normed. norm_layer:
    whether another layer's states are normed as the last one's are.
    """

    role: str
    key: str
    rules: TokenRules
    layer: int | None = None
    norm_layer: bool = True


Combine: TypeAlias = "Callable[[Mapping[str, Encoded]], Cond]"


@dataclass(frozen=True, slots=True)
class TextUse:
    """How a family makes a conditioning of its encoders' outputs, which `combine` gets by key."""

    encoders: tuple[EncoderUse, ...]
    combine: Combine


def _alone(key: str) -> Combine:
    return lambda out: Cond(out[key].hidden, out[key].projected)


def _side_by_side(out: Mapping[str, Encoded]) -> Cond:
    """CLIP-L and bigG, channel by channel (Podell et al. 2023), pooled from bigG."""
    length = min(out["l"].hidden.shape[1], out["g"].hidden.shape[1])
    return Cond(
        torch.cat([out["l"].hidden[:, :length], out["g"].hidden[:, :length]], dim=-1), out["g"].projected
    )


_SDXL_L = EncoderUse("clip_l", "l", CLIP_L_RULES, layer=-2, norm_layer=False)
_SDXL_G = EncoderUse("clip_g", "g", OPEN_CLIP_RULES, layer=-2, norm_layer=False)

USES: Mapping[str, TextUse] = MappingProxyType(
    {
        "sd15": TextUse((EncoderUse("clip_l", "l", CLIP_L_RULES),), _alone("l")),
        "sd20": TextUse((EncoderUse("clip_h", "h", OPEN_CLIP_RULES, layer=-2),), _alone("h")),
        "sdxl": TextUse((_SDXL_L, _SDXL_G), _side_by_side),
        "refiner": TextUse((_SDXL_G,), _alone("g")),
        "flux": TextUse(
            (EncoderUse("clip_l", "l", CLIP_L_RULES), EncoderUse("t5xxl", "t5xxl", T5_RULES)),
            lambda out: Cond(out["t5xxl"].hidden, out["l"].pooled),
        ),
    }
)
"""TextEncoders.kind → its use."""


def encode_prompt(
    memory: TextMemory, clip: TextEncoders, text: str | Mapping[str, str], folders: ModelFolders
) -> tuple[Conditioning, tuple[PromptWarning, ...]]:
    """Encode one text, or a text per encoder key ("l", "g", "t5xxl"), with float32 results.

    Raises ModelFileError where an encoder is missing or an embedding file cannot be used."""
    use = USES.get(clip.kind)
    if use is None:
        raise ModelFileError(f"text encoders of the kind {clip.kind!r} cannot encode a prompt")
    tokens: dict[str, Tokens] = {}
    warnings: dict[PromptWarning, None] = {}
    for encoder in use.encoders:
        own = text if isinstance(text, str) else text.get(encoder.key, "")
        tokens[encoder.key], found = _tokens(clip, encoder, own, folders)
        warnings.update(dict.fromkeys(found))
    if not isinstance(text, str):
        _even_out(tokens, use)
    outputs = {e.key: _run(memory, clip, e, tokens[e.key]) for e in use.encoders}
    return (use.combine(outputs),), tuple(warnings)


def _part(clip: TextEncoders, role: str) -> TextPart:
    part = clip.part(role)
    if part is None:
        has = ", ".join(p.role for p in clip.parts) or "none"
        raise ModelFileError(f"the text encoder {role} is needed and was not loaded (loaded: {has})")
    return part


def _tokens(
    clip: TextEncoders, use: EncoderUse, text: str, folders: ModelFolders
) -> tuple[Tokens, list[PromptWarning]]:
    shapes = _part(clip, use.role).weights.shapes
    names = ("text_model.embeddings.token_embedding", "shared", "encoder.embed_tokens")
    tables = (shapes.get(f"{use.role}.transformer.{name}.weight") for name in names)
    width = next((shape[1] for shape in tables if shape is not None), 0)
    find = EmbeddingFinder(folders, use.role, width, clip.embeddings)
    options = {name: clip.option(f"{use.key}_{name}") for name in ("min_padding", "min_length")}
    rules = replace(use.rules, **{name: value for name, value in options.items() if isinstance(value, int)})
    found = tokenize(text, rules, find)
    return found.chunks, [*find.warnings, *(find.unknown(name) for name in found.unknown)]


def _even_out(tokens: dict[str, Tokens], use: TextUse) -> None:
    """Give encoders that are read side by side equally many chunks, with empty ones at the end."""
    count = max(len(tokens[e.key]) for e in use.encoders if e.rules.length)
    for encoder in use.encoders:
        if encoder.rules.length:
            missing = count - len(tokens[encoder.key])
            tokens[encoder.key] += (encoder.rules.empty(encoder.rules.length),) * missing


def _run(memory: TextMemory, clip: TextEncoders, use: EncoderUse, tokens: Tokens) -> Encoded:
    """One encoder's output for a prompt: chunks one after the other, pooled from the first."""
    module = cast("TextModule", memory.text(clip)[use.role])
    layer = use.layer if clip.clip_skip is None else clip.clip_skip
    run = _Run(
        module, use, None if layer is None or not 1 <= -layer <= module.depth else layer, memory.device
    )
    weights = torch.tensor([[t.weight for t in chunk] for chunk in tokens])[..., None]
    with torch.inference_mode():
        out = run(tokens)
        hidden = out.hidden.float().cpu()
        if bool((weights != 1).any()):
            stack = tuple(lora.signature for lora in clip.stack)
            hidden = torch.where(
                weights == 1, hidden, run.empty(hidden.shape[1], stack).lerp(hidden, weights)
            )
    first = [None if t is None else t[:1].float().cpu().clone() for t in (out.pooled, out.projected)]
    return Encoded(hidden.flatten(0, 1)[None].clone(), *first)


@dataclass(frozen=True, slots=True)
class _Run:
    """An encoder about to run: which layer, and where."""

    module: TextModule
    use: EncoderUse
    layer: int | None
    device: torch.device

    def __call__(self, tokens: Tokens) -> Encoded:
        rules = self.use.rules
        rows = [self._embed(chunk) for chunk in tokens]
        ends = [_end(chunk, row.shape[-1], rules) for chunk, row in zip(tokens, rows, strict=True)]
        return self.module(
            torch.stack(rows), torch.tensor(ends, device=self.device), self.layer, self.use.norm_layer
        )

    def empty(self, length: int, stack: Hashable) -> Tensor:
        """(T, D) what the empty prompt gives: computed once per state of the weights and kept with them."""
        known = self.module.empty_prompts
        key = (stack, self.layer, self.use.norm_layer, length)
        if key not in known:
            while len(known) >= EMPTY_PROMPTS:
                del known[next(iter(known))]
            known[key] = self((self.use.rules.empty(length),)).hidden[0].float().cpu()
        return known[key]

    def _embed(self, chunk: Chunk) -> Tensor:
        """(T, D) token vectors and embeddings. Embeddings of another width are left out, and padding takes
        their room at the end."""
        pad = self.use.rules.pad
        numbers = [t.token if isinstance(t.token, int) else pad for t in chunk]
        table = self.module.embed(torch.tensor([*numbers, pad], device=self.device))
        rows: list[Tensor] = []
        for index, weighted in enumerate(chunk):
            if isinstance(weighted.token, int):
                rows.append(table[index])
            elif weighted.token.shape[-1] == table.shape[-1]:
                rows.append(weighted.token.to(table))
        rows += [table[-1]] * (len(chunk) - len(rows))
        return torch.stack(rows)


def _end(chunk: Chunk, width: int, rules: TokenRules) -> int:
    """The place of the end token among the vectors of width `width`."""
    tokens = [t.token for t in chunk if isinstance(t.token, int) or t.token.shape[-1] == width]
    return next((i for i, t in enumerate(tokens) if isinstance(t, int) and t == rules.end), len(tokens) - 1)
