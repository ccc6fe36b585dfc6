"""Any family's diffusion network, ready for sampling: residency, latents and skipped blocks in one place.

What differs from family to family is two functions of its `network.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from loraloom.errors import InputError
from loraloom.models.encoder import encoder_kind
from loraloom.models.family import Config, Family
from loraloom.models.latent_format import LatentFormat
from loraloom.models.parts.picture_vectors import PICTURES
from loraloom.models.recipe import Recipe, Use, wants
from loraloom.models.residency.unmerged import UnclearRows
from loraloom.models.text.recipes import known_recipes
from loraloom.models.tiny_autoencoder import autoencoder_title
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, Parametrisation, SampleContext
from loraloom.weights.capacity import is_allocation_failure, let_go

Skipped: TypeAlias = "tuple[tuple[str, int], ...]"
"""Blocks to leave out: ("double", 7), ("single", 3) …"""

Around: TypeAlias = Callable[[nn.Module, int], AbstractContextManager[None]]
"""(module, rows of the batch) → what acts on the module during the call."""


def _nothing(module: nn.Module, rows: int) -> AbstractContextManager[None]:
    return nullcontext()


class Joining(Protocol):
    """A network's place among those that are evaluated together (`residency.together`).

    steps: of the run that it is in, as far as is known."""

    steps: int

    def __call__(self, alone: DiffusionNetwork, x: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Run:
    """What a family's functions may ask: the network's configuration and type, and the run's latents.

    latent: (B, C, H, W) the latent that sampling starts from, as the network sees it; noise, mask, role: as
        in `SampleContext`. Those are of the run that `inputs` is asked for; `forward` needs none of them.
    kept: what `forward` keeps for the later steps of a run. has_room: whether memory is left for so many
        bytes more than a step takes.
    """

    config: Config
    latents: LatentFormat
    dtype: torch.dtype
    context: SampleContext | None = None
    options: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())
    kept: list[object] = field(default_factory=lambda: list[object]())
    has_room: Callable[[int], bool] = lambda more: True

    @property
    def latent(self) -> Tensor:
        return self.sample.latent

    @property
    def sample(self) -> SampleContext:
        if self.context is None:
            raise InputError("There is no run of sampling here.")
        return self.context

    def number(self, name: str) -> int:
        """An entry of the network's configuration that is a whole number."""
        return cast(int, self.config[name])


@dataclass(frozen=True, eq=False, slots=True)
class DiffusionNetwork:
    """A `sampling.types.Network` around the module of a family.

    module: gives the resident module, with the right weights in it, each time it is about to be used.
    dtype, device: the type it computes in, and where. around: what acts on the module during each call.
    options: what nodes attached to the model, by name, for the family's functions. reserve: makes room for
    computing with such inputs; torch.OutOfMemoryError where there is too little for so many at once.
    has_room: whether so many bytes more than that are free. kept: see `Run`.
    give_way: after an allocation failed, whether there is more to be had now. recipe: how prompts for these
    weights are made; None: the family's usual one. say: hears what a run asks for and does not get.
    apart: the networks of the equal parts of a batch, where each has LoRAs of its own beside the weights; for
    layers that do not tell the rows of the batch. joining: evaluates it together with others.
    """

    family: Family
    module: Callable[[], nn.Module]
    config: Config
    parametrisation: Parametrisation
    dtype: torch.dtype
    device: torch.device
    around: Around = _nothing
    options: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())
    skipped: Skipped = ()
    reserve: Callable[[Tensor, Inputs], None] = lambda x, inputs: None
    has_room: Callable[[Tensor, Inputs, int], bool] = lambda x, inputs, more: True
    kept: list[object] = field(default_factory=lambda: list[object]())
    give_way: Callable[[], bool] = lambda: False
    recipe: Recipe | None = None
    say: Callable[[str], None] = lambda message: None
    apart: Callable[[], Sequence[DiffusionNetwork]] | None = None
    joining: Joining | None = None

    @property
    def latents(self) -> LatentFormat:
        return self.family.latents

    @property
    def latent_channels(self) -> int:
        return self.family.latents.channels

    @property
    def latent_pixels(self) -> int:
        return self.family.latents.pixels

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def skipping(self, blocks: Skipped) -> DiffusionNetwork:
        """This network without some of its blocks. InputError where it has none of that name."""
        known = self.family.blocks
        if unknown := sorted({group for group, _ in blocks if group not in known}):
            has = f"its blocks are called {', '.join(known)}" if known else "its blocks cannot be skipped"
            raise InputError(f"{self.family.title} has no blocks called {', '.join(unknown)}: {has}.")
        apart = self.apart
        parts = None if apart is None else cache(lambda: [part.skipping(blocks) for part in apart()])
        return replace(self, skipped=blocks, kept=[], apart=parts)

    def inputs(self, cond: Cond, context: SampleContext) -> Inputs:
        """InputError for conditionings whose width is of another family's text encoder; those that are
        another's and as wide are said to be."""
        self._check_prompt(cond)
        if self.joining is not None and context.sigmas is not None:
            self.joining.steps = max(len(context.sigmas) - 1, 1)
        found = self.family.network.inputs(cond, self._run(context))
        if cond.options.get("reference_latents") and not found.references:
            how = " where no node says how to place them: add FluxKontextMultiReferenceLatentMethod"
            self.say(
                f"{self.family.title} looks at none of the reference pictures of this conditioning"
                + how * self.family.asks_for_placing
            )
        if found.references or found.maps:
            self._check_encoders(cond)
        if cond.options.get(PICTURES) and not self.family.told_pictures(self.config):
            self.say(f"this {self.family.title} model is not told of pictures (unCLIPConditioning)")
        return found

    def _check_encoders(self, cond: Cond) -> None:
        """Tells of pictures whose latents another family's autoencoder wrote with as many channels."""
        for kind in dict.fromkeys(cast("Sequence[str]", cond.options.get("latent_encoders") or ())):
            if kind not in self.latents.decoders:
                theirs, own = map(autoencoder_title, (kind, self.latents.autoencoder))
                self.say(
                    f"a picture beside the prompt was encoded by a {theirs} and this model is for a {own}:"
                    " it will hardly see it. Load the VAE of this model"
                )

    def _check_prompt(self, cond: Cond) -> None:
        title, own = self.family.title, self.recipe or self.family.prompt
        wide, wanted = cond.context.shape[-1], self.family.context_width(self.config)
        if wanted and wide != wanted:
            raise InputError(
                f"the prompt's tokens are {wide} wide and this {title} model reads {wanted}: they are of "
                f"another model's text encoder. {_needed(of_width(own, wanted))}"
            )
        made = known_recipes().get(cond.recipe)
        fitting = (own, *self.family.prompt_beside) if own is self.family.prompt else (own,)
        if made is not None and made not in fitting:
            self.say(
                f"the prompt was encoded by {wants(made)} (as for {made.name}) and this {title} model was "
                f"trained with other encodings: the picture may not follow the prompt. {_needed(own)}"
            )

    def __call__(self, x: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
        if self.joining is not None:
            return self.joining(replace(self, joining=None), x, timestep, inputs)
        while True:
            try:
                return self._evaluated(x, timestep, inputs)
            except UnclearRows:
                if self.apart is None:
                    raise
                return self._in_parts(self.apart(), x, timestep, inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_allocation_failure(error):
                    raise
                let_go(error)
                if self.kept:
                    self.kept.clear()
                elif not self.give_way():
                    raise

    def _in_parts(
        self, networks: Sequence[DiffusionNetwork], x: Tensor, timestep: Tensor, inputs: Inputs
    ) -> Tensor:
        size, outputs = len(x) // len(networks), list[Tensor]()
        for part, network in enumerate(networks):
            rows = slice(part * size, (part + 1) * size)
            outputs.append(network(x[rows], timestep[rows], inputs.rows(rows)))
        return torch.cat(outputs)

    def _evaluated(self, x: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
        module = self.module()
        self.reserve(x, inputs)
        run = replace(self._run(), kept=self.kept, has_room=partial(self.has_room, x, inputs))
        with self.around(module, len(x)), self._without_skipped(module):
            return self.family.network.forward(module, x, timestep.to(x.device), inputs, run).float()

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return self.family.latents.into(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return self.family.latents.out_of(latent)

    def _run(self, context: SampleContext | None = None) -> Run:
        return Run(self.config, self.family.latents, self.dtype, context, self.options)

    @contextmanager
    def _without_skipped(self, module: Any) -> Generator[None]:
        """The module with shorter lists of blocks for the time of the context."""
        lists = {name: group for group, name in self.family.blocks.items()} if self.skipped else {}
        whole = {name: getattr(module, name) for name in lists}
        try:
            for name, group in lists.items():
                kept = [block for n, block in enumerate(whole[name]) if (group, n) not in self.skipped]
                setattr(module, name, nn.ModuleList(kept))
            yield
        finally:
            for name, blocks in whole.items():
                setattr(module, name, blocks)


def _needed(recipe: Recipe) -> str:
    kind = recipe.types[0] if recipe.types else recipe.name
    return f"Its own is {wants(recipe)}, loaded with the type {kind}"


def of_width(recipe: Recipe, width: int) -> Recipe:
    """A recipe with those sizes of its encoders alone whose states are so wide, where they tell that."""

    def narrowed(use: Use) -> Use:
        sizes = encoder_kind(use.encoder).sizes
        fitting = {size.name for size in sizes if size.width * len(use.layers) == width}
        return replace(use, sizes=tuple(size for size in use.sizes if size in fitting) or use.sizes)

    return replace(recipe, uses=tuple(map(narrowed, recipe.uses)))
