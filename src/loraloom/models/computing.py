"""How networks compute, beside the device and the type: what users choose. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from loraloom.errors import InputError

AttentionName: TypeAlias = Literal["auto", "math", "flash", "efficient", "cudnn", "flash-attn", "sage"]
"""PyTorch's choice, one of its kernels, or a package."""

Fast: TypeAlias = Literal["steps", "tokens", "vae"]
"""What makes another picture, sooner: see `Computing`."""

ATTENTIONS: tuple[AttentionName, ...] = get_args(AttentionName)
FAST: tuple[Fast, ...] = get_args(Fast)


@dataclass(frozen=True, slots=True)
class Computing:
    """attention: of diffusion networks; never another than this one (`models.attention`).

    narrow_weights: weights of layers stay as narrow as their file has them and are widened at each use. The
        same picture, less memory, more time.
    compiled: the blocks of diffusion networks are compiled for this machine (`models.compiled`).
    fast: what makes another picture; the run says what was done. "steps": evaluations whose output would
        hardly differ from the last one's are left out (`sampling.reuse`). "tokens": UNets attend to fewer
        tokens at their largest level (`models.token_merging`). "vae": a tiny autoencoder decodes.
    """

    attention: AttentionName = "auto"
    narrow_weights: bool = False
    compiled: bool = False
    fast: tuple[Fast, ...] = ()

    def __post_init__(self) -> None:
        """InputError for names that are none."""
        if self.attention not in ATTENTIONS:
            raise InputError(f"no such attention: {self.attention!r}; use one of {', '.join(ATTENTIONS)}")
        if unknown := [name for name in self.fast if name not in FAST]:
            raise InputError(f"nothing fast is called {unknown[0]!r}; use {', '.join(FAST)}")
        if self.compiled and "tokens" in self.fast:
            raise InputError(
                "--fast tokens and --compile exclude each other: how many tokens there are is fixed"
            )


USUAL = Computing()
"""The same picture as ever, by the fastest way that is known to give it."""


def computing_of(said: Mapping[str, Any]) -> Computing:
    """As JSON, which has no tuples, says it (`dataclasses.asdict`)."""
    return Computing(said["attention"], said["narrow_weights"], said["compiled"], tuple(said["fast"]))
