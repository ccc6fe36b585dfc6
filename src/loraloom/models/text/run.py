"""One text encoder on the tokens of a prompt.

Words of a weight other than 1 move away from (or towards) what the empty prompt gives at their place:
z = z_empty + weight · (z - z_empty), as ComfyUI weighs prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from loraloom.models.encoder import EncoderKind
from loraloom.models.handles import TextEncoders
from loraloom.models.recipe import Use
from loraloom.models.residency.activations import sequence_numbers
from loraloom.models.text.causal import CausalText
from loraloom.models.text.causal_run import CausalRun, Reserve
from loraloom.models.text.clip import ClipText, Encoded
from loraloom.models.text.t5 import T5Text
from loraloom.models.text.tokens import Chunk, TokenRules, Tokens

EMPTY_PROMPTS = 16
"""How many states of an encoder (LoRA stacks, layers, lengths) keep what the empty prompt gives."""


class TextMemory(Protocol):
    """What encoding needs of the memory: kind → the module with the LoRA stack applied; room for so many
    numbers beside one of them; after an allocation failed in these, whether more is free now."""

    @property
    def device(self) -> torch.device: ...
    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]: ...
    def reserve_text(self, encoders: TextEncoders, role: str, numbers: int) -> None: ...
    def text_gives_way(self, encoders: TextEncoders) -> bool: ...


TextModule: TypeAlias = "ClipText | T5Text | CausalText"


class Run(Protocol):
    """An encoder about to run: tokens → its states, chunks side by side in the batch."""

    @property
    def module(self) -> TextModule: ...
    @property
    def use(self) -> Use: ...
    @property
    def rules(self) -> TokenRules: ...
    def __call__(self, tokens: Tokens) -> Encoded: ...


def encoder_run(
    module: TextModule,
    kind: EncoderKind,
    use: Use,
    rules: TokenRules,
    device: torch.device,
    reserve: Reserve = lambda numbers: None,
) -> Run:
    """An encoder, as a recipe uses it. reserve: makes room for so many numbers before it computes."""
    if isinstance(module, CausalText):
        return CausalRun(module, use, rules, device, kind.vision, reserve)
    return ChunkRun(module, use, rules, device, reserve)


def weighted(run: Run, tokens: Tokens, state: Hashable) -> Encoded:
    """An encoder's output for a prompt: chunks one after the other, pooled from the first; float32, on the
    CPU.

    state: of the encoder's weights, for what is kept of the empty prompt."""
    weights = torch.tensor([[t.weight for t in chunk] for chunk in tokens])[..., None]
    with torch.inference_mode():
        out = run(tokens)
        hidden = out.hidden.float().cpu()
        if bool((weights != 1).any()):
            empty = _empty(run, hidden.shape[1], state)
            hidden = torch.where(weights == 1, hidden, empty.lerp(hidden, weights))
    first = [None if t is None else t[:1].float().cpu().clone() for t in (out.pooled, out.projected)]
    return Encoded(hidden.flatten(0, 1)[None].clone(), first[0], first[1], out.mask, out.pictures)


def _empty(run: Run, length: int, state: Hashable) -> Tensor:
    """(T, D) what the empty prompt gives: computed once per state of the weights and kept with them."""
    known = run.module.empty_prompts
    key = (state, run.use.layers, run.use.norm_layer, length)
    if key not in known:
        while len(known) >= EMPTY_PROMPTS:
            del known[next(iter(known))]
        known[key] = run((run.rules.empty(length),)).hidden[0].float().cpu()
    return known[key]


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """CLIP or T5 about to run: as a recipe uses it, and where."""

    module: ClipText | T5Text
    use: Use
    rules: TokenRules
    device: torch.device
    reserve: Reserve = lambda numbers: None

    def __call__(self, tokens: Tokens) -> Encoded:
        rows = [self._embed(chunk) for chunk in tokens]
        ends = [_end(chunk, row.shape[-1], self.rules) for chunk, row in zip(tokens, rows, strict=True)]
        (layer,) = self.use.layers
        self.reserve(sequence_numbers(self.module, len(rows), len(rows[0]), states=1))
        return self.module(
            torch.stack(rows), torch.tensor(ends, device=self.device), layer, self.use.norm_layer
        )

    def _embed(self, chunk: Chunk) -> Tensor:
        """(T, D) token vectors and embeddings. Embeddings of another width are left out, and padding takes
        their room at the end."""
        pad = self.rules.pad
        numbers = [t.token if isinstance(t.token, int) else pad for t in chunk]
        table = self.module.embed(torch.tensor([*numbers, pad], device=self.device))
        rows: list[Tensor] = []
        for index, weighted in enumerate(chunk):
            if isinstance(weighted.token, int):
                rows.append(table[index])
            elif isinstance(weighted.token, Tensor) and weighted.token.shape[-1] == table.shape[-1]:
                rows.append(weighted.token.to(table))
        rows += [table[-1]] * (len(chunk) - len(rows))
        return torch.stack(rows)


def _end(chunk: Chunk, width: int, rules: TokenRules) -> int:
    """The place of the end token among the vectors of width `width`."""
    tokens = [t.token for t in chunk if not isinstance(t.token, Tensor) or t.token.shape[-1] == width]
    return next((i for i, t in enumerate(tokens) if isinstance(t, int) and t == rules.end), len(tokens) - 1)
