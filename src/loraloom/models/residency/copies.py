"""Tensors of the host's memory that products ask for on the device where they compute."""

from __future__ import annotations

from torch import Tensor


class Copies:
    """What several such tensors take of a device.

    stay: whether their copies are kept there from call to call; else each leaves once it was used."""

    def __init__(self) -> None:
        self.stay = True
        self._all: list[Copied] = []

    def of(self, tensor: Tensor) -> Copied:
        """A tensor, copied when it is asked for."""
        made = Copied(tensor, self)
        self._all.append(made)
        return made

    @property
    def elements(self) -> int:
        """Numbers in all of them."""
        return sum(one.elements for one in self._all)

    @property
    def largest(self) -> int:
        """Numbers in the largest."""
        return max((one.elements for one in self._all), default=0)

    @property
    def held(self) -> int:
        """Bytes that are on the device now."""
        return sum(one.held for one in self._all)

    def put_away(self) -> bool:
        """Let go of what is on the device; whether there was anything."""
        had = self.held > 0
        for one in self._all:
            one.put_away()
        return had


class Copied:
    """One of them. On the host itself nothing is copied: the tensor takes the type in which it is used."""

    def __init__(self, tensor: Tensor, copies: Copies) -> None:
        self._own, self._copies = tensor, copies
        self._there: Tensor | None = None

    @property
    def elements(self) -> int:
        return self._own.numel()

    @property
    def held(self) -> int:
        return 0 if self._there is None else self._there.nbytes

    def at(self, like: Tensor) -> Tensor:
        """The tensor on the device and in the type of another."""
        if like.device == self._own.device:
            self._own = self._own.to(like)
            return self._own
        found = self._there
        if found is None or found.dtype != like.dtype or found.device != like.device:
            found = self._own.to(like)
        self._there = found if self._copies.stay else None
        return found

    def put_away(self) -> None:
        self._there = None
