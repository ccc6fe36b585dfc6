"""From a network to a `Denoiser`: batched evaluation of conditionings, guidance, and the noise mask."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraloom.errors import InputError, OutOfMemory
from loraloom.sampling.conditions import Entry
from loraloom.sampling.guidance import Blocks, Guidance, MaskRule, Moment, SamplingOptions
from loraloom.sampling.hooks import Adapt, Change, HookStrengths
from loraloom.sampling.inputs import Inputs, in_parts
from loraloom.sampling.types import Denoiser, Network, Parametrisation, SkipsLayers
from loraloom.weights.capacity import is_allocation_failure, let_go

KEPT_CHANGES = 4
"""How many networks with LoRAs of single conditionings are kept from step to step."""


@dataclass(frozen=True, eq=False, slots=True)
class _Piece:
    """One entry's work in one evaluation: whose it is, its crop of x, its inputs at that crop."""

    name: str
    entry: Entry
    x: Tensor
    inputs: Inputs

    @staticmethod
    def of(name: str, entry: Entry, x: Tensor) -> _Piece:
        return _Piece(name, entry, entry.crop(x), entry.inputs.cropped(entry.crop))

    def joins(self, other: _Piece) -> bool:
        """Whether both can be evaluated in one batch."""
        if self.x.shape != other.x.shape:
            return False
        is_same = self.entry.hooks == other.entry.hooks
        return self.inputs.joins(other.inputs) if is_same else self.inputs.alike(other.inputs)


class Evaluation:
    """Runs a network on prepared conditionings, as many in one batch as shapes and memory allow."""

    def __init__(
        self, network: Network, sides: Mapping[str, Sequence[Entry]], adapt: Adapt | None = None
    ) -> None:
        self._network = network
        self._sides = sides
        self._adapt = adapt
        self._adapted: OrderedDict[tuple[Change, ...], Network] = OrderedDict()
        self._strengths = HookStrengths(network.parametrisation)
        self._most = sys.maxsize  # latents at once

    @property
    def parametrisation(self) -> Parametrisation:
        return self._network.parametrisation

    def __call__(self, x: Tensor, sigma: Tensor, names: Sequence[str], skip: Blocks) -> list[Tensor]:
        """x0 for each name, its entries weighed against each other; 0 where none applies at this sigma."""
        pieces = [
            piece
            for name in dict.fromkeys(names)
            for piece in _pieces(name, [e for e in self._sides[name] if e.active(float(sigma))], x)
        ]
        predicted: dict[int, Tensor] = {}
        waiting = list(pieces)
        while waiting:
            group = [piece for piece in waiting if piece.joins(waiting[0])]
            for piece, denoised in zip(group, self._run(group, sigma, skip), strict=True):
                predicted[id(piece)] = denoised
            waiting = [piece for piece in waiting if id(piece) not in predicted]
        found = {
            name: _blended(x, [(piece, predicted[id(piece)]) for piece in pieces if piece.name == name])
            for name in dict.fromkeys(names)
        }
        return [found[name] for name in names]

    def _network_for(self, by_row: Sequence[Change], skip: Blocks) -> Network:
        """The network for a batch whose rows carry these changes."""
        network = self._hooked(in_parts(by_row))
        if not skip:
            return network
        if not isinstance(network, SkipsLayers):
            raise InputError("This model cannot skip layers; remove the node that asks for it.")
        return network.skipping(skip)

    def _hooked(self, changes: tuple[Change, ...]) -> Network:
        if not any(changes):
            return self._network
        if self._adapt is None:
            raise InputError("A conditioning carries LoRAs of its own, which cannot be used here.")
        if changes not in self._adapted:
            self._adapted[changes] = self._adapt(changes)
            while len(self._adapted) > KEPT_CHANGES:
                self._adapted.popitem(last=False)
        self._adapted.move_to_end(changes)
        return self._adapted[changes]

    def _run(self, group: Sequence[_Piece], sigma: Tensor, skip: Blocks) -> Sequence[Tensor]:
        """x0 of each piece, in as few batches as memory allows."""
        parametrisation = self._network.parametrisation
        changes = [self._strengths.at(piece.entry.hooks, float(sigma)) for piece in group]
        by_row = [change for change, piece in zip(changes, group, strict=True) for _ in piece.x]
        x = torch.cat([piece.x for piece in group])
        levels = sigma.to(x.device).expand(len(x))
        scaled = parametrisation.scale_input(x, levels)
        times = parametrisation.timestep(levels).float()
        inputs = Inputs.joined([piece.inputs for piece in group], len(group[0].x))
        outputs: list[Tensor] = []
        done = 0
        while done < len(x):
            rows = slice(done, done + min(self._most, len(x)))
            network = self._network_for(by_row[rows], skip)
            try:
                output = network(scaled[rows], times[rows], inputs.rows(rows)).float()
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                let_go(error)
                self._most = len(scaled[rows]) // 2
                if not self._most:
                    reason = str(error).partition("\n")[0]
                    raise OutOfMemory(
                        "There is not enough memory on the device for one step at this size. "
                        f"Choose a smaller picture, or a smaller dtype. ({reason})"
                    ) from error
            else:
                outputs.append(output)
                done = rows.stop
        return parametrisation.denoised(x, torch.cat(outputs), levels).chunk(len(group))


def _pieces(name: str, entries: Sequence[Entry], x: Tensor) -> list[_Piece]:
    """The work for one side: its entries, and its default ones where the others leave room."""
    pieces = [_Piece.of(name, entry, x) for entry in entries if not entry.is_default]
    defaults = [entry for entry in entries if entry.is_default]
    if defaults:
        room = x.new_ones(x.shape[0], 1, *x.shape[-2:])
        for piece in pieces:
            piece.entry.crop(room).sub_(piece.entry.weight(x))
        room.clamp_(min=0)
        if room.any():
            pieces += [
                _Piece.of(name, replace(entry, mask=room[:, 0], strength=1.0), x) for entry in defaults
            ]
    return pieces


def _blended(x: Tensor, predictions: Sequence[tuple[_Piece, Tensor]]) -> Tensor:
    if len(predictions) == 1:
        (piece, denoised) = predictions[0]
        if piece.entry.area is None and piece.entry.mask is None and piece.entry.strength != 0:
            return denoised
    total, weights = torch.zeros_like(x), torch.full_like(x, 1e-37)
    for piece, denoised in predictions:
        weight = piece.entry.weight(x)
        piece.entry.crop(total).add_(denoised * weight)
        piece.entry.crop(weights).add_(weight)
    return total / weights


class GuidedDenoiser:
    """A network under guidance."""

    def __init__(
        self, evaluation: Evaluation, guidance: Guidance, options: SamplingOptions, *, needs_uncond: bool
    ) -> None:
        self._evaluation = evaluation
        self._guidance = guidance
        self._options = options
        self._needs_uncond = needs_uncond
        self._uncond: Tensor | None = None

    @property
    def parametrisation(self) -> Parametrisation:
        return self._evaluation.parametrisation

    @property
    def uncond(self) -> Tensor | None:
        return self._uncond

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        def evaluate(*names: str, skip: Blocks = ()) -> list[Tensor]:
            return self._evaluation(x, sigma, names, skip)

        guided = self._guidance(
            Moment(x, sigma, self.parametrisation, evaluate, self._options, self._needs_uncond)
        )
        self._uncond = guided.uncond
        return guided.denoised


@dataclass(frozen=True, eq=False, slots=True)
class MaskedDenoiser:
    """A denoiser that keeps the latent where mask (B, C, H, W) is 0, noised to each level as x is.

    rule: how the mask changes with sigma, for soft masks.
    """

    inner: Denoiser
    latent: Tensor
    noise: Tensor
    mask: Tensor
    sigmas: Tensor
    rule: MaskRule | None = None

    @property
    def parametrisation(self) -> Parametrisation:
        return self.inner.parametrisation

    @property
    def uncond(self) -> Tensor | None:
        return self.inner.uncond

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        mask = self.mask
        if x.shape[-2:] != mask.shape[-2:]:
            raise InputError("A noise mask does not go with a sampler that changes the latent's size.")
        if self.rule is not None:
            mask = self.rule(mask, sigma, self.sigmas, self.parametrisation)
        kept = self.parametrisation.add_noise(self.latent, self.noise, sigma, max_denoise=False)
        denoised = self.inner(x * mask + kept * (1 - mask), sigma)
        return denoised * mask + self.latent * (1 - mask)
