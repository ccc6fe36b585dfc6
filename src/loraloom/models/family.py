"""What Loraloom knows of a model family, as data.

A family is a folder `models/families/NAME` of two files. `family.py` ends in FAMILY: how its network is
recognised by the names and shapes of its weights, how it is built from those shapes alone, what its latents
and prompts are, and what LoRA files and training need to know; it never imports torch. `network.py` says
how the network is called: `inputs(cond, run)` and `forward(module, x, time, given, run)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from loraloom.models.known_model import Blueprint as Blueprint
from loraloom.models.known_model import Config as Config
from loraloom.models.known_model import KnownModel
from loraloom.models.known_model import Module as Module
from loraloom.models.known_model import count_blocks as count_blocks
from loraloom.models.known_model import from_shapes as from_shapes
from loraloom.models.known_model import number as number
from loraloom.models.latent_format import LatentFormat
from loraloom.models.names import Placement as Placement
from loraloom.models.names import Placements as Placements
from loraloom.models.names import Shapes as Shapes
from loraloom.models.recipe import Recipe
from loraloom.weights.patch import Target

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.models.diffusion_network import Run
    from loraloom.sampling.inputs import Inputs
    from loraloom.sampling.types import Cond, Parametrisation
    from loraloom.weights.source import WeightSource


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Family(KnownModel):
    """A family of diffusion models.

    prediction: what the network predicts. prompt: how it uses its text encoders; prompt_where: native name →
        how those of its networks do whose files hold it; prompt_beside: further ways, for other encoders.
    said: lower-case parts of `modelspec.architecture` or `ss_base_model_version` that name it.
    gguf: what GGUF files call it (`general.architecture`); "": its own name.
    blocks: what workflows call its groups of blocks ("double") → the module's list of them.
    context_width: of the conditionings that it reads, from the configuration; 0: not said.
    sizes: width of its states → what its published models of that width are called, where there are several.
    takes_styles: whether tokens that nodes attach to the model stand before the prompt's.
    told_pictures: whether a network of a configuration is told what pictures are about (unCLIP).
    asks_for_placing: whether it looks at reference pictures only where a node says how to place them.
    keeps_references: whether it can compute reference pictures in the first step alone.
    end_to_end: parts of the paths of modules that are not given a batch's rows along the first dimension, but
        what belongs to each row, end to end there, of equal lengths where the rows' inputs are alike.
    """

    latents: LatentFormat
    prediction: Callable[[WeightSource], Parametrisation]
    prompt: Recipe
    prompt_where: Mapping[str, Recipe] = field(default_factory=lambda: dict[str, Recipe]())
    prompt_beside: tuple[Recipe, ...] = ()
    said: tuple[str, ...] = ()
    gguf: str = ""
    blocks: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    context_width: Callable[[Config], int] = lambda config: 0
    sizes: Mapping[int, str] = field(default_factory=lambda: dict[int, str]())
    takes_styles: bool = False
    told_pictures: Callable[[Config], bool] = lambda config: False
    asks_for_placing: bool = False
    keeps_references: bool = False
    end_to_end: tuple[str, ...] = ()
    lora: LoraFacts = LoraFacts()
    training: TrainingFacts | None = None

    @property
    def prompts(self) -> tuple[Recipe, ...]:
        """All its ways to use text encoders."""
        return (self.prompt, *self.prompt_where.values(), *self.prompt_beside)

    @property
    def is_unet(self) -> bool:
        """Whether its network is a UNet, whose decoder is given what skipped the middle."""
        return self.module.path.endswith(":UNet2DConditionModel")

    def recipe(self, shapes: Shapes) -> Recipe:
        """How the network of these weights uses its text encoders."""
        return next((own for mark, own in self.prompt_where.items() if mark in shapes), self.prompt)

    def lora_aliases(self, shapes: Shapes) -> dict[str, Target]:
        """Module path → target, for the weights that `shapes` holds."""
        return self.names.of_native(shapes).aliases(shapes)

    @cached_property
    def network(self) -> NetworkFunctions:
        """How its network is called. Imports torch."""
        found = importlib.import_module(f"loraloom.models.families.{self.name}.network")
        return cast(NetworkFunctions, found)
