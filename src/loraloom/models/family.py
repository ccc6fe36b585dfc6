"""What Loraloom knows of a model family, as data.

A family file (models/families/NAME.py, ending in FAMILY) states how its networks are recognised by the
names and shapes of their weights, and how the network is built from those shapes alone: a narrower or
shallower variant loads by the same code. Importing a family never imports torch; `blueprint(...).build`,
`parametrisation` and `adapter` do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from loraloom.errors import ModelFileError
from loraloom.weights.patch import Rows, Target

if TYPE_CHECKING:
    import torch
    from torch import nn

    from loraloom.sampling.types import Network, Parametrisation
    from loraloom.weights.source import WeightSource

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Native weight name → shape."""


Regrouping: TypeAlias = Mapping[str, "tuple[tuple[str, Rows], ...]"]
"""Native weight name → the tensors, by name and rows, that make it up in a file of another layout."""


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
class Placement:
    """Where a module's parameter comes from: row ranges of a native weight, concatenated in order (none:
    all of it), reshaped to the parameter's shape."""

    native: str
    rows: tuple[tuple[int, int], ...] = ()


Placements: TypeAlias = Mapping[str, Placement]
"""Name of a module's parameter or buffer → its placement."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A network as the shapes of its weights determine it.

    build: makes the module, its parameters on "meta" (`weights.meta.build_unfilled`).
    unused: patterns (`fnmatch`) of native names that files of this family hold and the network does not use.
    """

    config: Mapping[str, object]
    build: Callable[[], nn.Module]
    placements: Placements
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LatentFormat:
    """The latents of a family: network latent = (autoencoder latent - shift) * scale.

    rgb: (C, 3) factors and rgb_bias that turn a network latent into a rough picture in [-1, 1].
    downscale: pixels per latent pixel, in both directions.
    tiny: name of the tiny autoencoder for it ("taesd"), whose decoder previews use where it is at hand.
    """

    name: str
    channels: int
    scale: float
    shift: float = 0.0
    rgb: tuple[tuple[float, float, float], ...] = ()
    rgb_bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    downscale: int = 8
    tiny: str = ""


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """What a family's adapter makes a `Network` of.

    module: gives the resident module, with the right weights in it, each time it is about to be used.
    dtype, device: the type it computes in, and where.
    around: what acts on the module for the time of each call.
    """

    module: Callable[[], nn.Module]
    dtype: torch.dtype
    device: torch.device
    parametrisation: Parametrisation
    latent: LatentFormat
    config: Mapping[str, object]
    around: Callable[[nn.Module], AbstractContextManager[None]] = lambda module: nullcontext()


@dataclass(frozen=True, eq=False)
class ModelFamily:
    """A family of diffusion models. Compared and hashed by identity: each exists once.

    matches: whether weights of these native names and shapes are a network of this family.
    diffusers_names: module path in diffusers → the native weight (and its rows) that holds it.
    from_diffusers: names and shapes of a file in diffusers' layout → the native weights that it holds; None
        where it is not such a file.
    text_kind: the kind of text encoders that condition it, and their roles in a checkpoint.
    metadata_names: lower-case parts of `modelspec.architecture` or `ss_base_model_version` that name it.
    """

    name: str
    title: str
    latent: LatentFormat
    text_kind: str
    text_roles: tuple[str, ...]
    matches: Callable[[Shapes], bool]
    blueprint: Callable[[Shapes], Blueprint]
    parametrisation: Callable[[WeightSource], Parametrisation]
    adapter: Callable[[NetworkParts], Network]
    diffusers_names: Callable[[Shapes], Iterable[tuple[str, Target]]]
    metadata_names: tuple[str, ...] = ()
    from_diffusers: Callable[[Shapes], Regrouping | None] = lambda shapes: None

    def lora_aliases(self, shapes: Shapes) -> Iterable[tuple[str, Target]]:
        """Module paths in diffusers → targets, for the weights that `shapes` holds."""
        return ((path, target) for path, target in self.diffusers_names(shapes) if target.weight in shapes)
