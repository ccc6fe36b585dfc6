"""What Loraloom knows of a model family, as data.

A family is a folder `models/families/NAME` of two files. `family.py` ends in FAMILY: how its network is
recognised by the names and shapes of its weights, how it is built from those shapes alone, what its latents
and prompts are, and what LoRA files and training need to know; it never imports torch. `network.py` says
how the network is called: `inputs(cond, run)` and `forward(module, x, time, given, run)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from loraloom.errors import ModelFileError
from loraloom.models.latent_format import LatentFormat
from loraloom.models.names import NameMap, Placements
from loraloom.models.names import Placement as Placement
from loraloom.models.names import Shapes as Shapes
from loraloom.models.recipe import Recipe
from loraloom.weights.patch import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from loraloom.models.diffusion_network import Run
    from loraloom.sampling.inputs import Inputs
    from loraloom.sampling.types import Cond, Parametrisation
    from loraloom.weights.source import WeightSource

Config = Mapping[str, object]


@contextmanager
def from_shapes(what: str) -> Generator[None, None, None]:
    """Around code that reads a layout from names and shapes as they should be: where they are not, a
    ModelFileError says that they do not make `what`."""
    try:
        yield
    except (LookupError, ValueError, ArithmeticError, TypeError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelFileError(f"the weights do not make {what}: {problem}") from error


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A network as the shapes of its weights determine it.

    build: makes the module, its parameters on "meta" (`weights.meta.build_unfilled`).
    unused: patterns (`fnmatch`) of native names that files of this family hold and the network does not use.
    """

    config: Config
    build: Callable[[], nn.Module]
    placements: Placements
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """The class of a network: "package.module:Class", and its arguments from the shapes of the weights."""

    path: str
    config: Callable[[Shapes], Config]

    def build(self, config: Config) -> nn.Module:
        """Imports the class's own file and makes it."""
        where, _, name = self.path.partition(":")
        made: Callable[..., nn.Module] = getattr(importlib.import_module(where), name)
        return made(**config)


def count_blocks(shapes: Shapes, pattern: str) -> int:
    """How many native names "blocks.{}.…" go on from 0."""
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count


def prefixed(*prefixes: str) -> Callable[[str], Iterator[str]]:
    """Module path → it behind each prefix, flattened where the prefix ends in "_"."""

    def names(path: str) -> Iterator[str]:
        for prefix in prefixes:
            yield prefix + (path.replace(".", "_") if prefix.endswith("_") else path)

    return names


@dataclass(frozen=True, slots=True)
class LoraSign:
    """Something about a module of a LoRA file that speaks for a family.

    path: pattern (`re`) within its flattened path, "transformer_blocks_0_img_mlp_…". widths: the inputs that
    such modules have in published models; none: any. weight: how much it says, beside other signs."""

    path: str
    widths: tuple[int, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What LoRA files for a family look like.

    signs: by what a file is told to be for it.
    text_is_fixed: whether LoRAs leave the text encoders as they are.
    rewrites: foreign endings of module paths (pattern, replacement).
    kohya: whose paths kohya's trainers flatten: the module's, or the native ones.
    dotted: what diffusers puts before the module's paths.
    base_version: what kohya's trainers call the base (ss_base_model_version).
    comfyui: module path → the names under which ComfyUI reads it, beside the native ones that it reads for
        every family ("lora_unet_", "diffusion_model.").
    """

    signs: tuple[LoraSign, ...] = ()
    text_is_fixed: bool = True
    rewrites: tuple[tuple[str, str], ...] = ()
    kohya: Literal["module", "native"] = "native"
    dotted: str = "transformer."
    base_version: str = ""
    comfyui: Callable[[str], Iterable[str]] = prefixed("transformer.", "lycoris_")


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What training a LoRA for a family needs to know.

    architecture: what the header of the file says (modelspec).
    flat: what stands before the module's flattened paths.
    text: text encoders that may get adapters, in order.
    stated_prediction: modelspec's word for what the network predicts; "": not said.
    """

    architecture: str
    flat: str = "lora_unet_"
    text: tuple[str, ...] = ()
    stated_prediction: str = ""
    implementation: str = "diffusers"


class NetworkFunctions(Protocol):
    """A family's `network.py`."""

    def inputs(self, cond: Cond, run: Run) -> Inputs:
        """What a conditioning becomes for latents like `run.latent`."""
        ...

    def forward(self, module: Any, x: Tensor, time: Tensor, given: Inputs, run: Run) -> Tensor:
        """x (B, C, H, W) or (B, C, F, H, W) float32, time (B,) float32 → the network's output, like x."""
        ...


@dataclass(frozen=True, eq=False)
class Family:
    """A family of diffusion models. Compared and hashed by identity: each exists once.

    marks, unmarks: native names that its files hold, and that they do not. fits: what shapes must show
        beside (called when the marks are there).
    module: the class of the network. names: native ↔ module. prediction: what the network predicts.
    prompt: how it uses its text encoders.
    said: lower-case parts of `modelspec.architecture` or `ss_base_model_version` that name it.
    blocks: what workflows call its groups of blocks ("double") → the module's list of them.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    module: Module
    names: NameMap
    latents: LatentFormat
    prediction: Callable[[WeightSource], Parametrisation]
    prompt: Recipe
    unmarks: tuple[str, ...] = ()
    fits: Callable[[Shapes], bool] = lambda shapes: True
    said: tuple[str, ...] = ()
    blocks: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    lora: LoraFacts = LoraFacts()
    training: TrainingFacts | None = None

    def matches(self, shapes: Shapes) -> bool:
        """Whether weights of these native names and shapes are a network of this family."""
        if not all(mark in shapes for mark in self.marks) or any(mark in shapes for mark in self.unmarks):
            return False
        try:
            return self.fits(shapes)
        except (ModelFileError, LookupError, ValueError):
            return False  # tensors of unexpected dimensions are of none

    def blueprint(self, shapes: Shapes) -> Blueprint:
        """The network for these shapes; ModelFileError where they do not make one."""
        with from_shapes(f"a {self.title} network"):
            if missing := [mark for mark in self.marks if mark not in shapes]:
                raise ModelFileError(
                    f"the weights do not make a {self.title} network: {missing[0]!r} is missing"
                )
            config = self.module.config(shapes)
            names = self.names.of_native(shapes)
            return Blueprint(
                config, lambda: self.module.build(config), names.placements(shapes), names.unused
            )

    def lora_aliases(self, shapes: Shapes) -> dict[str, Target]:
        """Module path → target, for the weights that `shapes` holds."""
        return self.names.of_native(shapes).aliases(shapes)

    @cached_property
    def network(self) -> NetworkFunctions:
        """How its network is called. Imports torch."""
        found = importlib.import_module(f"loraloom.models.families.{self.name}.network")
        return cast(NetworkFunctions, found)
