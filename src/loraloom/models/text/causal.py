"""Language models as text encoders: the states of some of their layers.

The networks are transformers'. What is taken are the states themselves, as they pass from layer to layer, by
hooks: transformers' own list of hidden states is normed at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraloom.models.recipe import Layer


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model sees beside token vectors.

    positions: (3, 1, T) frame, row and column of each token. pictures: (1, T) where tokens of pictures are;
    deep: what is added to the first layers' outputs there, each (N, D)."""

    positions: Tensor
    pictures: Tensor
    deep: tuple[Tensor, ...] = ()

    def arguments(self) -> dict[str, object]:
        """As transformers' text models take it."""
        found: dict[str, object] = {"position_ids": self.positions}
        if self.deep:
            found |= {"visual_pos_masks": self.pictures, "deepstack_visual_embeds": list(self.deep)}
        return found


class _Enough(Exception):
    """All states that are wanted are there."""


class CausalText(nn.Module):
    """Embedded tokens (B, T, D) → states of layers.

    model: a text model of transformers. visual: its vision tower, None without one.
    empty_prompts: what the empty prompt gives, kept by whoever encodes."""

    def __init__(self, model: nn.Module, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.empty_prompts: dict[Hashable, Tensor] = {}
        self.model = model
        self.visual = visual

    @property
    def depth(self) -> int:
        return len(self._layers)

    @property
    def width(self) -> int:
        return self.model.get_parameter("embed_tokens.weight").shape[1]

    @property
    def vector_scale(self) -> float:
        """What vectors that are not the table's own are multiplied with, as the table's are."""
        scale = getattr(self.model.get_submodule("embed_tokens"), "embed_scale", 1.0)
        return float(scale)

    @property
    def _layers(self) -> nn.ModuleList:
        layers = self.model.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    def embed(self, tokens: Tensor) -> Tensor:
        """(…,) token numbers → (…, D) vectors."""
        return self.model.get_submodule("embed_tokens")(tokens)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        layers: Sequence[Layer],
        norm_layer: bool = False,
        seen: Seen | None = None,
    ) -> Tensor:
        """mask: (B, T) 0 where nothing may attend; None: no padding. norm_layer: whether the states of a
        layer get the final norm. Returns (B, T, D · number of layers), the layers side by side."""
        taken: dict[int, Tensor] = {}
        wanted = [self._index(layer) for layer in layers if layer is not None]
        given = {} if seen is None else seen.arguments()
        with self._taking(taken, wanted, stop=None not in layers), suppress(_Enough):
            out = self.model(inputs_embeds=x, attention_mask=mask, use_cache=False, **given)
            taken[self.depth + 1] = out.last_hidden_state
        found = [taken[self._index(layer)] for layer in layers]
        if norm_layer:
            norm = self.model.get_submodule("norm")
            found = [h if layer is None else norm(h) for h, layer in zip(found, layers, strict=True)]
        return torch.cat(found, dim=-1)

    def _index(self, layer: Layer) -> int:
        """After how many layers states are taken, the final norm counting as one more; numbers beyond the
        last mean the last."""
        if layer is None:
            return self.depth + 1
        index = layer if layer >= 0 else self.depth + 1 + layer
        return min(max(index, 0), self.depth)

    @contextmanager
    def _taking(self, taken: dict[int, Tensor], wanted: Sequence[int], *, stop: bool) -> Generator[None]:
        """For the time of a call, keep the states after so many layers: what the next one is given. stop: the
        layers behind the last of these need not run."""
        places = [*self._layers, self.model.get_submodule("norm")]

        def keep(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                del module
                taken[number] = inputs[0]
                if stop and number == max(wanted):
                    raise _Enough

            return hook

        hooks = [places[number].register_forward_pre_hook(keep(number)) for number in set(wanted)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
