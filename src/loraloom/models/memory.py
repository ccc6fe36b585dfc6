"""From handles to networks that compute: what is in memory, in which type, and who makes room.

One module per base and type, whatever LoRAs are on it: a network that is asked for takes the module with
its own stack applied, at each call, so that two networks may share a base and be used in turns. What was
not used for longest leaves first, text encoders before the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from loraloom.errors import InputError, OutOfMemory
from loraloom.models.activations import hidden_width, step_bytes
from loraloom.models.autoencoder_network import AutoencoderNetwork
from loraloom.models.diffusion_network import Around, DiffusionNetwork
from loraloom.models.encoder import text_blueprint
from loraloom.models.family import Blueprint
from loraloom.models.freeu import FreeU
from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders, TextPart
from loraloom.models.resident import Arithmetic, Resident, Storage
from loraloom.models.unmerged import Unmerged
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Network
from loraloom.weights.capacity import available_memory, has_native_bfloat16, is_allocation_failure
from loraloom.weights.patch import Stack
from loraloom.weights.source import WeightSource

DtypeName: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Kind: TypeAlias = Literal["network", "autoencoder", "text"]

_KINDS: Mapping[Kind, str] = {
    "network": "network",
    "autoencoder": "autoencoder",
    "text": "text encoder",
}

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LARGE_TEXT_ENCODER = 2_000_000_000
"""Parameters from which a text encoder follows the network's type instead of float32."""

MARGIN = 256 << 20
"""Bytes kept free when weights are loaded; what a step or a picture takes is made room for at the call."""

DOUBT = 2
"""How far off an estimate of what computing takes may be."""


class Memory:
    """What is resident on one device.

    device: "auto", "cpu", "cuda", "cuda:1", "mps". dtype: the type networks compute in; "auto" is bfloat16
    where the device multiplies it natively, else float32. budget: bytes that weights may take in all;
    None: what the device has. storage: how quantised weights are multiplied (`resident.Arithmetic`).
    """

    def __init__(
        self,
        device: str = "auto",
        dtype: DtypeName = "auto",
        budget: int | None = None,
        storage: Arithmetic = "native",
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        self.budget = budget
        self.storage: Arithmetic = storage
        self._residents: OrderedDict[Hashable, tuple[Kind, Resident]] = OrderedDict()

    def network(self, model: DiffusionModel, beside: Stack = ()) -> Network:
        """The diffusion network with its LoRA stack, loaded and patched by the time of each call.

        beside: LoRAs that run beside the weights, which therefore need not be patched for them."""
        blueprint = model.family.blueprint(model.weights.shapes)
        width, pixels = hidden_width(model.weights.shapes), model.family.latents.pixels
        key = _key("network", model.weights, self.dtype, _storage(model))

        def needed(x: Tensor, inputs: Inputs) -> int:
            return step_bytes(blueprint.config, width, pixels, x, inputs, self.dtype.itemsize)

        return DiffusionNetwork(
            family=model.family,
            module=self._network_lease(model, blueprint),
            config=blueprint.config,
            parametrisation=model.current_parametrisation(),
            dtype=self.dtype,
            device=self.device,
            around=_around(model, blueprint, beside),
            options=dict(model.options),
            reserve=lambda x, inputs: self._reserve(needed(x, inputs), x.shape[0], key),
            has_room=lambda x, inputs, more: self.has_room(needed(x, inputs) + more, key),
        )

    def autoencoder(self, vae: Autoencoder) -> AutoencoderNetwork:
        blueprint = vae.kind.blueprint(vae.weights.shapes)
        lease = self._lease("autoencoder", blueprint, vae.weights, (), self.dtype)
        has_room = partial(self.has_room, kept=_key("autoencoder", vae.weights, self.dtype))
        return AutoencoderNetwork(vae.kind, lease, blueprint.config, self.dtype, self.device, has_room)

    def text(self, encoders: TextEncoders) -> Mapping[str, nn.Module]:
        """Role → text encoder with the stack applied. Valid until the next call of this object."""
        return {part.role: self._text_part(part, encoders.stack) for part in encoders.parts}

    def resident_module(self, model: DiffusionModel) -> nn.Module:
        """The diffusers module behind `network`, patched. Valid until the next call of this object."""
        return self._network_lease(model, model.family.blueprint(model.weights.shapes))()

    def release(self) -> None:
        """Let go of everything; networks that were handed out load again when next called."""
        self._residents.clear()
        self._empty_cache()

    @property
    def resident_kinds(self) -> tuple[Kind, ...]:
        """What is in memory, the least used first."""
        return tuple(kind for kind, _ in self._residents.values())

    @property
    def resident_bytes(self) -> int:
        return sum(resident.nbytes for _, resident in self._residents.values())

    def _text_part(self, part: TextPart, stack: Stack) -> nn.Module:
        count = sum(torch.Size(shape).numel() for shape in part.weights.shapes.values())
        dtype = self.dtype if count > LARGE_TEXT_ENCODER else torch.float32
        storage: Storage = "stored" if count > LARGE_TEXT_ENCODER else "quantized"
        blueprint = text_blueprint(part.role, part.weights.shapes)
        return self._lease("text", blueprint, part.weights, stack, dtype, storage)()

    def _network_lease(self, model: DiffusionModel, blueprint: Blueprint) -> Callable[[], nn.Module]:
        return self._lease("network", blueprint, model.weights, model.stack, self.dtype, _storage(model))

    def _lease(
        self,
        kind: Kind,
        blueprint: Blueprint,
        source: WeightSource,
        stack: Stack,
        dtype: torch.dtype,
        storage: Storage = "quantized",
    ) -> Callable[[], nn.Module]:
        def module() -> nn.Module:
            key = _key(kind, source, dtype, storage)
            if key not in self._residents:
                self._make_room(kind, source, dtype, storage)
                try:
                    resident = Resident(
                        blueprint,
                        source,
                        dtype=dtype,
                        device=self.device,
                        storage=storage,
                        arithmetic=self.storage,
                    )
                except (RuntimeError, MemoryError) as error:
                    if not is_allocation_failure(error):
                        raise
                    raise self._too_large(kind, source, dtype, storage) from error
                self._residents[key] = kind, resident
            self._residents.move_to_end(key)
            resident = self._residents[key][1]
            resident.apply(stack)
            return resident.module

        return module

    def _make_room(self, kind: Kind, source: WeightSource, dtype: torch.dtype, storage: Storage) -> None:
        """Evict until the weights fit; OutOfMemory with the figures when nothing is left to evict."""
        needed = weights_bytes(source, dtype, storage) + MARGIN
        while needed > self._free():
            if not self._evict():
                raise self._too_large(kind, source, dtype, storage)

    def _too_large(
        self, kind: Kind, source: WeightSource, dtype: torch.dtype, storage: Storage
    ) -> OutOfMemory:
        names = ", ".join(file.path.name for file in source.files)
        needed = weights_bytes(source, dtype, storage) + MARGIN
        return OutOfMemory(
            f"{names}: the {_KINDS[kind]} needs {needed / 1e9:.2f} GB as"
            f" {str(dtype).removeprefix('torch.')}; {max(self._free(), 0) / 1e9:.2f} GB are available on"
            f" {self.device}. Close other programs, or use a"
            " smaller type (--dtype bf16) or an 8-bit file"
        )

    def has_room(self, needed: int, kept: Hashable = None) -> bool:
        """Whether so many bytes are free to compute with; others than `kept` leave until they are."""
        while needed > available_memory(self.device):
            if not self._evict(kept):
                return False
        return True

    def _reserve(self, needed: int, batch: int, kept: Hashable) -> None:
        """Make room for one evaluation. torch.OutOfMemoryError where fewer latents at once would need less,
        or where so much is missing that the system would end the process: `needed` is an estimate."""
        if torch.is_grad_enabled() or self.has_room(needed, kept):
            return
        free = available_memory(self.device)
        if batch > 1 or needed > DOUBT * free:
            raise torch.OutOfMemoryError(f"about {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")

    def _free(self) -> int:
        free = available_memory(self.device)
        return free if self.budget is None else min(free, self.budget - self.resident_bytes)

    def _evict(self, kept: Hashable = None) -> bool:
        """Drop the resident that was not used for longest, text encoders first; whether there was one.

        kept: one that stays, because it is about to be used."""
        others = {key: kind for key, (kind, _) in self._residents.items() if key != kept}
        keys = [key for key, kind in others.items() if kind == "text"] or list(others)
        if not keys:
            return False
        del self._residents[keys[0]]
        self._empty_cache()
        return True

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _key(kind: Kind, source: WeightSource, dtype: torch.dtype, storage: Storage = "quantized") -> Hashable:
    """What a resident is found by."""
    return kind, source, dtype, storage


def _around(model: DiffusionModel, blueprint: Blueprint, beside: Stack) -> Around:
    """What acts on a network's module during each call."""
    freeu = model.option("freeu")
    acting: list[Around] = []
    if isinstance(freeu, FreeU):
        acting.append(freeu.on)
    if beside:
        acting.append(Unmerged(blueprint.placements, model.weights, beside).on)

    @contextmanager
    def around(module: nn.Module) -> Generator[None]:
        with ExitStack() as stack:
            for act in acting:
                stack.enter_context(act(module))
            yield

    return around if acting else nullcontext


def weights_bytes(source: WeightSource, dtype: torch.dtype, storage: Storage) -> int:
    """Bytes that a source's weights take once loaded to compute in `dtype`.

    Pages mapped from the file are counted too: the system may drop them, but then every use reads them."""
    total = 0
    for native, shape in source.shapes.items():
        stored, is_matrix = source.dtypes[native], len(shape) > 1
        if is_matrix and (source.is_packed(native) or storage == "stored"):
            total += source.stored_bytes(native)
            continue
        narrow = storage if is_matrix and isinstance(storage, torch.dtype) else dtype
        width = narrow.itemsize if stored.is_floating_point else stored.itemsize
        total += torch.Size(shape).numel() * width
    return total


def _storage(model: DiffusionModel) -> Storage:
    """How the handle wants linear weights to be kept (UNETLoader's weight_dtype)."""
    wanted = str(model.option("weight_dtype", "default"))
    if wanted.startswith("fp8_e4m3fn"):
        return torch.float8_e4m3fn
    return torch.float8_e5m2 if wanted == "fp8_e5m2" else "quantized"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"no device is called {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"the device {name!r} was asked for, and there is no usable CUDA device")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    dtype = DTYPES.get(name)
    if dtype is None:
        raise InputError(f"no such type to compute in: {name!r}; use auto, {', '.join(DTYPES)}")
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError(
            "fp16 arithmetic is not offered on the CPU: it is slow and inexact; use fp32 or bf16"
        )
    return dtype
