"""What Loraloom knows of a kind of text encoder, as data; the folder `encoders/` is the registry.

A file encoders/NAME.py ends in ENCODER: how files of this kind are recognised by the names and shapes of
their tensors, how the module is built from those shapes alone, how prompts become its tokens, and what others
call it. Importing one imports neither torch nor transformers; making the module and the tokenizer does.

Native names are the kind's name, ".transformer." and the module's own: "clip_l.transformer.text_model.…".
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeAlias

import loraloom.models.encoders as encoders_package
from loraloom.errors import ModelFileError
from loraloom.models.family import Blueprint, Shapes
from loraloom.weights.header import Header
from loraloom.weights.patch import Rows

if TYPE_CHECKING:
    from loraloom.weights.source import WeightSource


class Encoding(Protocol):
    """Token numbers of a text."""

    @property
    def ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """Text ↔ token numbers; special tokens are recognised in the text."""

    def encode(self, text: str, /) -> Encoding: ...
    def decode(self, ids: list[int], /) -> str: ...


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor of a file, or rows of it, under the name that the module gives it."""

    name: str
    key: str
    rows: Rows = None
    transposed: bool = False


Layout: TypeAlias = Callable[[Shapes], "Sequence[NamedTensor] | None"]
"""Shapes by name → the encoder's tensors among them; None where they are not such an encoder."""


@dataclass(frozen=True, slots=True)
class Size:
    """A published size of a kind: its name for recipes ("4b"), width and number of layers."""

    name: str
    width: int
    layers: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How a kind is fed.

    tokenizer: makes it, from the encoder's weights where the file holds it; without start, end or padding.
    start, end: put around a prompt. pad: fills up. chunk: positions that are read at a time, and each chunk
    is padded to it; None: one chunk of any length.
    turn, user: what begins a turn of a chat, and what follows it where the user speaks. stops: what ends what
        the model says, for kinds that write texts. thinks: whether it thinks before, unless told not to.
    """

    tokenizer: Callable[[WeightSource], Tokenizer]
    pad: int
    start: int | None = None
    end: int | None = None
    chunk: int | None = None
    turn: int | None = None
    user: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    thinks: bool = False


@dataclass(frozen=True, slots=True)
class Vision:
    """How a kind's vision tower is fed.

    patch: pixels of a patch, in both directions. merge: patches that one token covers, likewise. mean,
    deviation: of the pixels per channel. token: what stands for a picture among the tokens.
    """

    patch: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    token: int
    merge: int = 2


@dataclass(frozen=True, slots=True)
class LoraNames:
    """How LoRA files name an encoder.

    place: its place among those of a model, which kohya and diffusers number in this order.
    number: the number it has wherever it stands (kohya calls T5 the third also where there is no CLIP-G).
    native: what ComfyUI and OneTrainer call it ("text_encoders.NAME.").
    root: what stands before module names in files of this kind and may be missing in a LoRA's.
    """

    place: int
    native: tuple[str, ...]
    number: int | None = None
    root: str = "text_model."


@dataclass(frozen=True, eq=False)
class EncoderKind:
    """A kind of text encoder. Compared and hashed by identity: each exists once.

    layouts: in which files have it, the usual one first.
    sizes: the published ones; any other width and depth is built by the same code.
    measure: width and number of layers, from shapes by the module's names.
    blueprint: (prefix of native names, shapes by the module's names) → the module.
    tokens_table: names of the table of token vectors.
    vision: of kinds that see pictures.
    prefixes: under which all-in-one checkpoints keep it.
    classes: those of libraries that the module is made of ("package.module:Class").
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    sizes: tuple[Size, ...]
    measure: Callable[[Shapes], tuple[int, int]]
    blueprint: Callable[[str, Shapes], Blueprint]
    vocabulary: Vocabulary
    tokens_table: tuple[str, ...]
    prefixes: tuple[str, ...]
    lora: LoraNames = field(default=LoraNames(0, ()))
    vision: Vision | None = None
    classes: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What native names begin with."""
        return f"{self.name}.transformer."

    def tensors(self, shapes: Shapes) -> tuple[int, Sequence[NamedTensor]] | None:
        """The encoder among tensors, and the number of the layout that they have."""
        for number, layout in enumerate(self.layouts):
            found = layout(shapes)
            if found:
                return number, found
        return None

    def own(self, native: Shapes) -> Shapes:
        """Shapes by the module's names, from those by native name."""
        start = self.prefix
        return {name[len(start) :]: shape for name, shape in native.items() if name.startswith(start)}

    def network(self, native: Shapes) -> Blueprint:
        """The module; shapes by native name. Raises ModelFileError where they make no such encoder."""
        try:
            return self.blueprint(self.prefix, self.own(native))
        except (KeyError, ValueError, IndexError, ArithmeticError) as error:
            raise ModelFileError(f"not the weights of a {self.name} text encoder: {error}") from error

    def sizes_of(self, own: Shapes) -> tuple[int, tuple[str, ...]]:
        """Which sizes weights may be of: those of their width (2), else of their depth (1), else all (0); the
        number says how sure that is."""
        width, layers = self.measure(own)
        by_width = tuple(size.name for size in self.sizes if size.width == width)
        by_depth = tuple(size.name for size in self.sizes if size.layers == layers)
        if by_width:
            return 2, by_width
        return (1, by_depth) if by_depth else (0, tuple(size.name for size in self.sizes))


@cache
def encoder_kinds() -> Mapping[str, EncoderKind]:
    """Every kind of encoder by name: one per file of `models/encoders`."""
    found: dict[str, EncoderKind] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(encoders_package.__path__)):
        kind: EncoderKind = importlib.import_module(f"{encoders_package.__name__}.{module}").ENCODER
        if kind.name in found:
            raise ValueError(f"two text encoders are called {kind.name!r}; one is in encoders/{module}.py")
        found[kind.name] = kind
    return MappingProxyType(found)


def encoder_kind(name: str) -> EncoderKind:
    """A kind by name; ModelFileError lists the known ones."""
    kind = encoder_kinds().get(name)
    if kind is None:
        known = ", ".join(encoder_kinds())
        raise ModelFileError(f"no text encoder is called {name!r}; known are {known}")
    return kind


def tensors_under(header: Header, prefix: str, kind: EncoderKind) -> Iterator[NamedTensor]:
    """An encoder's tensors under a prefix, by native name and the file's own key; none where it is absent."""
    shapes = {
        key[len(prefix) :]: info.shape for key, info in header.tensors.items() if key.startswith(prefix)
    }
    found = kind.tensors(shapes)
    for tensor in found[1] if found else ():
        yield NamedTensor(kind.prefix + tensor.name, prefix + tensor.key, tensor.rows, tensor.transposed)


def named_shape(shapes: Shapes, tensor: NamedTensor) -> tuple[int, ...]:
    """The shape of a tensor as it is named, from the file's shapes."""
    shape = shapes[tensor.key]
    shape = shape[::-1] if tensor.transposed else shape
    return shape if tensor.rows is None else (tensor.rows[1] - tensor.rows[0], *shape[1:])


def checkpoint_shapes(header: Header) -> dict[str, dict[str, tuple[int, ...]]]:
    """Kind → native name → shape, of the text encoders that an all-in-one file holds. Imports no torch."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    keys = {key: info.shape for key, info in header.tensors.items()}
    for name, kind in encoder_kinds().items():
        for prefix in kind.prefixes:
            shapes = {t.name: named_shape(keys, t) for t in tensors_under(header, prefix, kind)}
            if shapes:
                found[name] = shapes
                break
    return found
