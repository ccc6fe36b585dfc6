"""From handles to networks that compute.

A network that is asked for takes the resident module with its own stack applied, at each call, so that two
networks may share a base and be used in turns (`residents` keeps what is in memory, `room` makes room to
compute in).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from loraloom.models.attention import attention
from loraloom.models.autoencoder_network import AutoencoderNetwork
from loraloom.models.compiled import check_compiler
from loraloom.models.computing import USUAL, Computing
from loraloom.models.diffusion_network import DiffusionNetwork, Joining
from loraloom.models.handles import KEEPS_REFERENCES, Autoencoder, DiffusionModel, TextEncoders, TextPart
from loraloom.models.picture_encoders import PictureEncoder, StyleModel
from loraloom.models.residency.acting import acting
from loraloom.models.residency.activations import hidden_width, step_bytes
from loraloom.models.residency.devices import DtypeName as DtypeName
from loraloom.models.residency.devices import device_named, dtype_named
from loraloom.models.residency.resident import Arithmetic
from loraloom.models.residency.residents import key_of
from loraloom.models.residency.room import Room
from loraloom.models.residency.storage import storage_of
from loraloom.models.residency.unmerged import Unmerged
from loraloom.models.residency.values import Storage
from loraloom.sampling.inputs import Inputs
from loraloom.weights.capacity import until_it_fits
from loraloom.weights.patch import Stack

Made = TypeVar("Made")

LARGE_TEXT_ENCODER = 2_000_000_000
"""Parameters from which a text encoder follows the network's type instead of float32."""


class Joins(Protocol):
    """What evaluates networks of several runs together (`residency.together`)."""

    def place(self, model: DiffusionModel, beside: tuple[Stack, ...]) -> Joining:
        """A network's place in it."""
        ...

    def said(self) -> Mapping[str, str | int] | None:
        """How the caller's latest evaluations were done, for the result of its run."""
        ...


class Memory(Room):
    """What is resident on one device, as networks that compute.

    device: "auto", "cpu", "cuda", "cuda:1", "xpu", "mps". dtype: the type networks compute in; "auto" is
    bfloat16 where the device multiplies it natively, else float32. budget: bytes that may be used of the
    device in all (of the CPU: by weights); None: what it has. storage: how quantised weights are multiplied
    (`resident.Arithmetic`). computing: see there.
    """

    def __init__(
        self,
        device: str = "auto",
        dtype: DtypeName = "auto",
        budget: int | None = None,
        storage: Arithmetic = "native",
        computing: Computing = USUAL,
    ) -> None:
        there = device_named(device)
        super().__init__(there, dtype_named(dtype, there), budget, storage, computing)
        self._attention = attention(computing.attention, self.device)
        if computing.compiled:
            check_compiler(self.device)
        self.joined: Joins | None = None
        """Evaluates networks of several runs together, while such runs go on."""

    def network(self, model: DiffusionModel, beside: tuple[Stack, ...] = ()) -> DiffusionNetwork:
        """The diffusion network with its LoRA stack, loaded and patched by the time of each call.

        beside: LoRAs that run beside the weights, which therefore need not be patched for them: one stack for
        all rows of a batch, or one for each of as many equal parts of it."""
        if self.joined is None or model.option(KEEPS_REFERENCES):
            return self.network_alone(model, beside)
        return replace(self.network_alone(model, beside), joining=self.joined.place(model, beside))

    @contextmanager
    def apart(self) -> Generator[None]:
        """Networks that are asked for in the context are evaluated by themselves."""
        joined, self.joined = self.joined, None
        try:
            yield
        finally:
            self.joined = joined

    def network_alone(
        self, model: DiffusionModel, beside: tuple[Stack, ...] = (), unmerged: Unmerged | None = None
    ) -> DiffusionNetwork:
        """The same, evaluated by itself even while others are evaluated together. unmerged: what `beside` is
        made into (`unmerged_of`), to be kept by the caller."""
        if any(beside) and unmerged is None:
            unmerged = self.unmerged_of(model, beside)
        blueprint = model.blueprint
        width, pixels = hidden_width(model.weights.shapes), model.family.latents.pixels
        key = key_of("network", model.weights, self.dtype, self._narrow(storage_of(model, self.device)))

        def needed(x: Tensor, inputs: Inputs) -> int:
            return step_bytes(blueprint.config, width, pixels, x, inputs, self.dtype.itemsize)

        return DiffusionNetwork(
            family=model.family,
            module=self._network_lease(model),
            config=blueprint.config,
            parametrisation=model.current_parametrisation(),
            dtype=self.dtype,
            device=self.device,
            around=acting(model, unmerged, self._attention, self.computing),
            options=dict(model.options),
            reserve=lambda x, inputs: self._reserve(needed(x, inputs), x.shape[0], key, unmerged),
            has_room=lambda x, inputs, more: self.has_room(needed(x, inputs) + more, key, may_shrink=False),
            give_way=partial(self.give_way, key),
            recipe=model.family.recipe(model.weights.shapes),
            say=lambda message: self.tell(message),
            apart=cache(lambda: [self.network_alone(model, (stack,)) for stack in beside])
            if len(beside) > 1
            else None,
        )

    def unmerged_of(self, model: DiffusionModel, beside: tuple[Stack, ...]) -> Unmerged:
        """Stacks to run beside a model's weights."""
        return Unmerged(model.blueprint.placements, model.weights, beside, model.family.end_to_end)

    def autoencoder(self, vae: Autoencoder) -> AutoencoderNetwork:
        blueprint = vae.blueprint
        storage = self._narrow("quantized")
        lease = self._lease("autoencoder", blueprint, vae.weights, (), self.dtype, storage)
        key = key_of("autoencoder", vae.weights, self.dtype, storage)
        return AutoencoderNetwork(
            vae.kind,
            lease,
            blueprint.config,
            self.dtype,
            self.device,
            has_room=partial(self._finds_room, kept=key),
            give_way=partial(self.give_way, key),
            say_tiles=self._say_tiles,
        )

    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]:
        """Role → text encoder with the stack applied. Valid until the next call of this object."""
        keys = self._text_keys(encoders)
        return {part.role: self._text_part(part, encoders.stack, keys) for part in encoders.parts}

    def reserve_text(self, encoders: TextEncoders, role: str, numbers: int) -> None:
        """Make room for so many numbers beside a text encoder that is about to run. torch.OutOfMemoryError
        where far more is missing than the estimate may be off."""
        part = encoders.part(role)
        assert part is not None
        dtype, storage = self._text_storage(part)
        key = key_of("text", part.weights, dtype, storage)
        self._reserve(numbers * dtype.itemsize, 1, key, beside=self._text_keys(encoders))

    def with_pictures(
        self,
        model: PictureEncoder | StyleModel,
        numbers: Callable[[nn.Module], int],
        work: Callable[[nn.Module], Made],
    ) -> Made:
        """What `work` makes with a picture encoder's or style model's module, room for so many numbers beside
        it; again with less on the device where an allocation fails."""
        dtype, storage = self._text_storage(model)
        key = key_of("pictures", model.weights, dtype, storage)
        lease = self._lease("pictures", model.blueprint, model.weights, (), dtype, storage)

        def attempt() -> Made:
            module = lease()
            self._reserve(numbers(module) * dtype.itemsize, 1, key)
            return work(module)

        return until_it_fits(attempt, partial(self.give_way, key))

    def resident_module(self, model: DiffusionModel) -> nn.Module:
        """The diffusers module behind `network`, patched. Valid until the next call of this object."""
        return self._network_lease(model)()

    def _text_part(self, part: TextPart, stack: Stack, beside: Collection[Hashable]) -> nn.Module:
        dtype, storage = self._text_storage(part)
        return self._lease("text", part.blueprint, part.weights, stack, dtype, storage, beside)()

    def _text_keys(self, encoders: TextEncoders) -> set[Hashable]:
        return {key_of("text", part.weights, *self._text_storage(part)) for part in encoders.parts}

    def _text_storage(self, part: TextPart | PictureEncoder | StyleModel) -> tuple[torch.dtype, Storage]:
        count = sum(torch.Size(shape).numel() for shape in part.weights.shapes.values())
        return (
            (self.dtype, "stored")
            if count > LARGE_TEXT_ENCODER
            else (torch.float32, self._narrow("quantized"))
        )

    def _narrow(self, storage: Storage) -> Storage:
        """How weights are stored where users want them as narrow as their file has them."""
        return "stored" if self.computing.narrow_weights and storage == "quantized" else storage

    def _network_lease(self, model: DiffusionModel) -> Callable[[], nn.Module]:
        storage = self._narrow(storage_of(model, self.device))
        return self._lease("network", model.blueprint, model.weights, model.stack, self.dtype, storage)

    def text_gives_way(self, encoders: TextEncoders) -> bool:
        """After an allocation failed in text encoders: whether more is free now."""
        return self.give_way(*self._text_keys(encoders))

    def _say_tiles(self, tile: int) -> None:
        self.tell(f"memory on {self.device} does not suffice for the whole picture: tiles of {tile} pixels")
