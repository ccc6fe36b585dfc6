"""Networks of several runs, evaluated together: one resident base, one batch, LoRAs row by row.

Every run samples by itself, with its own seed, sampler and conditionings. Where it would evaluate a network
it asks here, and once all runs ask, those that can are evaluated as one batch. Runs need not be at the same
step. Those whose LoRAs have to be merged go first one, then the next, so that weights are not rebuilt in
every step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from loraloom.models.diffusion_network import DiffusionNetwork
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.row_plan import ELSEWHERE, SPEEDS, Speeds, Way, costs, planned, signed
from loraloom.models.residency.unmerged import Unmerged
from loraloom.sampling.inputs import Inputs, in_parts
from loraloom.turns import Turns
from loraloom.weights.capacity import is_allocation_failure
from loraloom.weights.patch import Stack

KEPT_NETWORKS = 2
"""Batches whose joined factors are kept from step to step."""

KEEPS = "keeps_"
"""How options begin with which a network keeps things of one run from step to step: such runs go alone."""

OF_SAMPLING = "sampling"
"""The option of a model that samplers read and networks do not."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """An evaluation that a run asks for. beside: stacks of equal parts of its rows. alone: the network that
    does it by itself. number: how many were asked for before."""

    model: DiffusionModel
    beside: tuple[Stack, ...]
    alone: DiffusionNetwork
    x: Tensor
    time: Tensor
    inputs: Inputs
    steps: int
    number: int

    @property
    def base(self) -> Hashable:
        """What calls of one batch have in common, whatever their LoRAs."""
        options = tuple(option for option in self.model.options if option[0] != OF_SAMPLING)
        return self.model.weights, options, self.alone.skipped

    @property
    def stacks(self) -> Hashable:
        return signed(self.model.stack), tuple(map(signed, self.beside))

    def equals(self, other: Call) -> bool:
        """Whether both ask for the same."""
        return (
            self.stacks == other.stacks
            and self.base == other.base
            and self.x.shape == other.x.shape
            and torch.equal(self.x, other.x)
            and torch.equal(self.time, other.time)
            and self.inputs.equals(other.inputs)
        )


@dataclass(slots=True)
class Place:
    """A network's place among those that are evaluated together (`diffusion_network.Joining`)."""

    together: Together
    model: DiffusionModel
    beside: tuple[Stack, ...]
    steps: int = 1

    def __call__(self, alone: DiffusionNetwork, x: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
        if any(name.startswith(KEEPS) and value for name, value in self.model.options):
            return alone(x, timestep, inputs)
        return self.together.evaluated(self.model, self.beside, alone, x, timestep, inputs, self.steps)


@dataclass(slots=True)
class _Kept:
    """A batch's network with the factors of its rows."""

    network: DiffusionNetwork
    unmerged: Unmerged | None


@dataclass(slots=True)
class _Told:
    """most: rows in the largest batch that a run was part of. why: how its LoRAs took part."""

    most: int = 1
    why: str = ""


Rows = list[tuple[int, Call]]
"""Numbers of participants, and what they ask for."""


class Together:
    """Evaluates for the participants of `turns`, who share a `Memory`.

    most: runs that are in one batch at most; None: as many as the device's memory takes.
    """

    def __init__(
        self, memory: Memory, participants: int, most: int | None = None, speeds: Speeds | None = None
    ) -> None:
        self.turns = Turns[Call, Tensor](participants, self.answer)
        self._memory = memory
        self._speeds = speeds or SPEEDS.get(memory.device.type, ELSEWHERE)
        self._most = most or participants
        self._numbers = count()
        self._ways: dict[tuple[int, Hashable], Way] = {}
        self._unsettled: dict[tuple[int, Hashable], Hashable] = {}  # to the key of their batches
        self._told: dict[int, _Told] = {}
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._at: Hashable = None
        self._active: set[int] = set()
        self._seen: set[int] = set()
        self._twins: dict[int, int] = {}

    def place(self, model: DiffusionModel, beside: tuple[Stack, ...]) -> Place:
        return Place(self, model, beside)

    def said(self) -> Mapping[str, str | int] | None:
        """How the calling run was evaluated so far; None where it was not."""
        found = self._told.get(self.turns.number()) if self.turns.is_here() else None
        return None if found is None else {"rows": found.most, "loras": found.why}

    def evaluated(
        self,
        model: DiffusionModel,
        beside: tuple[Stack, ...],
        alone: DiffusionNetwork,
        x: Tensor,
        time: Tensor,
        inputs: Inputs,
        steps: int,
    ) -> Tensor:
        """The network's output, in the caller's turn; whoever takes no part is not kept waiting."""
        if not self.turns.is_here() or torch.is_grad_enabled():
            return alone(x, time, inputs)
        number = next(self._numbers)
        return self.turns.ask(Call(model, beside, alone, x, time, inputs, steps, number))

    def answer(self, asked: Mapping[int, Call]) -> Mapping[int, Tensor | BaseException]:
        """Evaluate one batch of what is asked for."""
        self._plan(asked)
        rows = self._chosen(asked)
        while True:
            try:
                outputs = self._evaluate(rows)
            except Exception as error:  # noqa: BLE001 - belongs to the runs
                if len(rows) > 1 and is_allocation_failure(error):
                    self._most = len(rows) // 2
                    self._kept.clear()  # the factors of so many rows
                    rows = rows[: self._most]
                    continue
                return self._one_by_one(rows, error)
            self._settle(rows)
            return outputs

    # ---- Which runs are evaluated next ----

    def _plan(self, asked: Mapping[int, Call]) -> None:
        """Find the ways of those whose LoRAs were not seen before."""
        new: dict[Hashable, Rows] = {}
        for number, call in asked.items():
            if (number, call.stacks) not in self._ways:
                new.setdefault(call.base, []).append((number, call))
        for rows in new.values():
            model = rows[0][1].model
            placements = model.blueprint.placements
            stacks = [call.model.stack for _, call in rows]
            try:
                ways = planned(stacks, placements, model.weights.shapes)
                if self._memory.computing.compiled and any(way.beside for way in ways):
                    why = "merged into the weights: nothing runs beside those of compiled blocks"
                    ways = [Way(stack, (), why) for stack in stacks]
            except Exception:  # noqa: BLE001 - each merges its own, so that one that is damaged fails alone
                ways = [Way(stack, (), "merged into the weights") for stack in stacks]
            for (number, call), way in zip(rows, ways, strict=True):
                self._ways[number, call.stacks] = way
                if way.is_open:
                    self._unsettled[number, call.stacks] = self._key(number, call)

    def _way(self, number: int, call: Call) -> Way:
        return self._ways[number, call.stacks]

    def _key(self, number: int, call: Call) -> Hashable:
        return call.base, signed(self._way(number, call).merged)

    def _chosen(self, asked: Mapping[int, Call]) -> Rows:
        """Those of one base with the same weights in it: of the ones that were at it last, while there are
        any, and of the others as many as there is room for."""
        by_key: dict[Hashable, Rows] = {}
        for number, call in asked.items():
            by_key.setdefault(self._key(number, call), []).append((number, call))
        if self._at not in by_key:
            self._at, self._active = next(iter(by_key)), set()
        found = by_key[self._at]
        found.sort(key=lambda row: (row[0] not in self._active, row[1].number))
        fitting = [row for row in found if self._joins(found[0], row)][: self._most]
        self._active |= {number for number, _ in fitting}
        return sorted(fitting, key=lambda row: row[0])

    def _joins(self, first: tuple[int, Call], second: tuple[int, Call]) -> bool:
        one, other = first[1], second[1]
        if one is other:
            return True
        if one.x.shape != other.x.shape or not one.inputs.joins(other.inputs):
            return False
        is_plain = not any(self._beside(*first)) and not any(self._beside(*second))
        return is_plain or not one.model.family.end_to_end or one.inputs.alike(other.inputs)

    def _beside(self, number: int, call: Call) -> tuple[Stack, ...]:
        """What runs beside the weights for each equal part of a call's rows."""
        rest = self._way(number, call).beside
        return tuple(rest + own for own in call.beside) or (rest,)

    # ---- Evaluating ----

    def _evaluate(self, rows: Rows) -> dict[int, Tensor | BaseException]:
        own = self._without_twins(rows)
        calls = [call for _, call in own]
        size = len(calls[0].x)
        output = self._network(own).network(
            torch.cat([call.x for call in calls]),
            torch.cat([call.time for call in calls]),
            Inputs.joined([call.inputs for call in calls], size),
        )
        for number, call in rows:
            told = self._told.setdefault(number, _Told())
            told.most, told.why = max(told.most, len(rows)), self._way(number, call).why
        found = dict(zip((number for number, _ in own), output.split(size), strict=True))
        return {number: found[self._twins.get(number, number)] for number, _ in rows}

    def _without_twins(self, rows: Rows) -> Rows:
        """Those whose outputs have to be computed. Runs that ask for the same from the first are called twins
        as long as they do: they differ in what comes after sampling, say."""
        asked = dict(rows)
        for number, call in rows:
            if number not in self._seen:
                self._seen.add(number)
                twin = next((n for n, other in rows if n < number and call.equals(other)), None)
                if twin is not None:
                    self._twins[number] = self._twins.get(twin, twin)
            elif (twin := self._twins.get(number)) is not None and not (
                twin in asked and call.equals(asked[twin])
            ):
                del self._twins[number]
        return [row for row in rows if row[0] not in self._twins]

    def _one_by_one(self, rows: Rows, error: Exception) -> dict[int, Tensor | BaseException]:
        """After a batch failed: each run by itself, so that the one that is to blame fails alone."""
        if len(rows) == 1:
            return {rows[0][0]: error}
        found: dict[int, Tensor | BaseException] = {}
        for row in rows:
            try:
                found |= self._evaluate([row])
            except Exception as own:  # noqa: BLE001 - belongs to the run
                found[row[0]] = own
        return found

    def _network(self, rows: Rows) -> _Kept:
        """The network of a batch, kept as long as the batch stays the same."""
        first = rows[0][1]
        stacks: list[Stack] = []
        for number, call in rows:
            own = self._beside(number, call)
            stacks += [stack for stack in own for _ in range(len(call.x) // len(own))]
        parts = in_parts(stacks)
        key = (self._key(*rows[0]), tuple(map(signed, parts)))
        if key not in self._kept:
            model = replace(first.model, stack=self._way(*rows[0]).merged)
            unmerged = self._memory.unmerged_of(model, parts) if any(parts) else None
            network = self._memory.network_alone(model, parts if any(parts) else (), unmerged)
            if first.alone.skipped:
                network = network.skipping(first.alone.skipped)
            self._kept[key] = _Kept(network, unmerged)
            while len(self._kept) > KEPT_NETWORKS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    # ---- What is faster ----

    def _settle(self, rows: Rows) -> None:
        """After the first batch with LoRAs beside the weights: whether those who were planned together go on
        like that, or one after another with merged weights."""
        new = [row for row in rows if (row[0], row[1].stacks) in self._unsettled]
        kept = self._network(self._without_twins(rows)) if new else None
        if kept is None or kept.unmerged is None:
            return
        first, unmerged = new[0][1], kept.unmerged
        keys = [key for key, of in self._unsettled.items() if of == self._at]
        stacks = [self._ways[key].merged + self._ways[key].beside for key in keys]
        found = costs(
            unmerged.work, max(call.steps for _, call in new) - 1, stacks, len(rows),
            len(unmerged.placements), first.model.weights, self._memory.dtype, self._speeds,
        )  # fmt: skip
        for key in keys:
            del self._unsettled[key]
            way = self._ways[key]
            if unmerged.unclear:
                why = f"LoRAs merged into the weights: {unmerged.unclear[0]}"
                self._ways[key] = Way(way.merged + way.beside, (), why)
            elif found.beside <= found.merged:
                self._ways[key] = replace(way, why=f"{way.why} ({found.in_words})", is_open=False)
            else:
                why = f"LoRAs merged into the weights ({found.in_words})"
                self._ways[key] = Way(way.merged + way.beside, (), why)
