"""Text encoders of files, as weight sources under native names, and the recipe that they are used by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraloom.errors import ModelFileError
from loraloom.models.encoder import (
    EncoderKind,
    NamedTensor,
    encoder_kind,
    encoder_kinds,
    named_shape,
    tensors_under,
)
from loraloom.models.handles import TextEncoders, TextPart
from loraloom.models.recipe import Candidate, choose
from loraloom.models.recognition import looks_like
from loraloom.models.text.recipes import NOT_RUN, known_recipes
from loraloom.weights.gguf_names import ARCHITECTURE, companion_tower
from loraloom.weights.source import Entry, Piece, WeightSource
from loraloom.weights.tensor_file import TensorFile


def checkpoint_parts(file: TensorFile, roles: tuple[str, ...]) -> tuple[TextPart, ...]:
    """The text encoders of these kinds that an all-in-one file holds."""
    found = (_under_prefix(file, encoder_kind(role)) for role in roles)
    return tuple(_checked(part) for part in found if part is not None)


def text_encoders(files: Sequence[TensorFile], kind: str) -> TextEncoders:
    """The text encoders of files, in any order; a file may be a single one, or a checkpoint with several.

    kind: the loader's `type`. ModelFileError where a file is no encoder, or does not belong to the type."""
    if kind in NOT_RUN:
        raise ModelFileError(NOT_RUN[kind])
    found = [offered for file in files for offered in _offered(file)]
    choice = choose(known_recipes().values(), kind, [(offer.name, list(offer.candidates)) for offer in found])
    parts = (
        _checked(offer.candidates[chosen]) for offer, chosen in zip(found, choice.candidates, strict=True)
    )
    return TextEncoders(choice.recipe.name, tuple(parts))


def _checked(part: TextPart) -> TextPart:
    """An encoder that can be built: what cannot is refused before anything is loaded."""
    with part.weights.naming():
        _ = part.blueprint
    return part


@dataclass(frozen=True, slots=True)
class _Offer:
    """An encoder of a file: what it may be → the part that it then is."""

    name: str
    candidates: dict[Candidate, TextPart]


def _offered(file: TensorFile) -> list[_Offer]:
    parts = checkpoint_parts(file, tuple(encoder_kinds()))
    if parts:
        return [_Offer(f"{file.path} holds", {_candidate(part): part}) for part in parts]
    offer = _alone(file)
    if offer is None:
        raise ModelFileError(f"{file.path}: no text encoder that is known here: {looks_like(file.header)}")
    return [offer]


def _candidate(part: TextPart) -> Candidate:
    kind = encoder_kind(part.role)
    _, sizes = kind.sizes_of(kind.own(part.weights.shapes))
    return Candidate(part.role, sizes)


def _alone(file: TensorFile) -> _Offer | None:
    """A file with one encoder. Kinds that have its size count before those that only have its layout."""
    owners = {key: one for one in (file, *_towers(file)) for key in one.header.tensors}
    shapes = {key: owner.header.tensors[key].shape for key, owner in owners.items()}
    found: dict[int, dict[Candidate, TextPart]] = {}
    for kind in encoder_kinds().values():
        try:
            match = kind.tensors(shapes)
            if match is None:
                continue
            rank, tensors = match
            certainty, sizes = kind.sizes_of({t.name: named_shape(shapes, t) for t in tensors})
        except (LookupError, ValueError, ModelFileError) as error:
            raise ModelFileError(f"{file.path}: not the weights of {kind.title}: {error}") from error
        native = (NamedTensor(kind.prefix + t.name, t.key, t.rows, t.transposed) for t in tensors)
        part = TextPart(kind.name, WeightSource(_entries(owners, native)))
        found.setdefault(certainty, {})[Candidate(kind.name, sizes, rank)] = part
    return _Offer(str(file.path), found[max(found)]) if found else None


def _under_prefix(file: TensorFile, kind: EncoderKind) -> TextPart | None:
    for prefix in kind.prefixes:
        owners = dict.fromkeys(file.header.tensors, file)
        entries = _entries(owners, tensors_under(file.header, prefix, kind))
        if entries:
            return TextPart(kind.name, WeightSource(entries))
    return None


def _towers(file: TensorFile) -> list[TensorFile]:
    """The file with the picture encoder beside a GGUF language model, where there is one."""
    if not str(file.header.metadata.get(ARCHITECTURE, "")).endswith("vl"):
        return []
    name = companion_tower([path.name for path in file.path.parent.iterdir()], file.path.name)
    return [] if name is None else [TensorFile(file.path.parent / name)]


def _entries(owners: Mapping[str, TensorFile], tensors: Iterable[NamedTensor]) -> dict[str, Entry]:
    """owners: key → the file that has it."""
    return {t.name: (Piece(owners[t.key], t.key, t.rows, t.transposed),) for t in tensors}
