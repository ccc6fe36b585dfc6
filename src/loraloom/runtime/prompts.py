"""What nodes that take prompts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loraloom.engine.node import NodeRun
from loraloom.errors import InputError, LoraloomError
from loraloom.models.handles import TextEncoders
from loraloom.models.text.embeddings import embedding_names, embedding_state
from loraloom.models.text.encode import encode_prompt
from loraloom.runtime.encodings import Encoded, encoding_key
from loraloom.runtime.services import services
from loraloom.sampling.types import Conditioning


def embedding_files(*, run: NodeRun, **inputs: object) -> list[object]:
    """The state of the embedding files that a node's texts name: an overwritten one is read again."""
    folders = services(run).folders
    texts = [value for value in inputs.values() if isinstance(value, str)]
    names = {name: None for text in texts for name in embedding_names(text)}
    return [[name, embedding_state(folders, name)] for name in names]


def encode(
    clip: TextEncoders | None,
    text: str | Mapping[str, str],
    options: Mapping[str, object],
    run: NodeRun,
    pictures: Sequence[Tensor] = (),
    *,
    template: str = "",
    keep_pictures: bool = True,
) -> Conditioning:
    """Encode a prompt (see `encode_prompt`), once for each state of the encoders, and put options and the
    encoders' hooks on; warnings are told."""
    found, encoders = services(run), loaded(clip)

    def encoded() -> Encoded:
        made, warnings = encode_prompt(
            found.memory,
            encoders,
            text,
            found.folders,
            pictures,
            template=template,
            keep_pictures=keep_pictures,
        )
        _check_finite(made)
        return made, warnings

    if pictures:  # large, and seldom the same twice
        conditioning, warnings = encoded()
    else:
        key = encoding_key(encoders, text, found.folders, template, keep_pictures)
        conditioning, warnings = found.encodings.get(key, encoded)
    for warning in warnings:
        run.warn(warning.message)
    hooks = encoders.option("cond_hooks")
    if hooks is not None:
        options = {**options, "hooks": hooks}
    if not options:
        return conditioning
    return tuple(replace(cond, options={**cond.options, **options}) for cond in conditioning)


def _check_finite(conditioning: Conditioning) -> None:
    """Values that are no numbers are said here, where they come from; else the sampler would be blamed."""
    for cond in conditioning:
        for tensor in (cond.context, cond.pooled):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise LoraloomError(
                    "the text encoders gave values that are no numbers (NaN or infinity). Try --dtype fp32; "
                    "if that gives the same, their file, a LoRA or an embedding of the prompt is damaged"
                )


def loaded(clip: TextEncoders | None) -> TextEncoders:
    """Text encoders that are there; InputError says where to get some."""
    if clip is None:
        raise InputError(
            "there are no text encoders: the checkpoint holds none. Load them with CLIPLoader or"
            " DualCLIPLoader and connect those"
        )
    return clip
