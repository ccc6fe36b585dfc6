"""What the shape rules of several algebras are made of. No torch."""

from __future__ import annotations

from math import prod

from loraloom.lora.component import Shape


def said(shape: Shape) -> str:
    """ "320×768"."""
    return "×".join(map(str, shape)) or "one value"


def misfit_of_matrix(made: Shape, weight: Shape) -> str | None:
    """Compare the matrix (rows, columns) that a module makes with the weight's."""
    rows, columns = made
    if not weight or rows != weight[0] or columns != prod(weight[1:]):
        flat = (weight[0], prod(weight[1:])) if weight else ()
        return f"made for a weight of {said(made)}, this one is {said(flat)}"
    return None


def misfit_of_values(made: Shape, weight: Shape) -> str | None:
    """Compare values that are stored as they are with the weight."""
    if made == weight or (prod(made) == prod(weight) and made[:1] == weight[:1]):
        return None
    return f"made for {said(made)}, this one is {said(weight)}"


def matrix_product(a: Shape, b: Shape) -> Shape | None:
    """Shape of the matrix product of a and b (flattened behind its first dimension)."""
    if len(a) != 2 or len(b) < 2 or a[1] != b[0]:
        return None
    return (a[0], prod(b[1:]))


def dimension(shape: Shape, index: int) -> int | None:
    """Size of a dimension that is there and not empty."""
    return shape[index] if -len(shape) <= index < len(shape) and shape[index] > 0 else None


def misfit_of_rotation(channels: int, rescale: Shape | None, weight: Shape) -> str | None:
    """Compare the output channels that are rotated, and those that are rescaled, with the weight's."""
    if not weight or channels != weight[0]:
        return f"rotates {channels} output channels, the weight has {weight[0] if weight else 0}"
    if rescale is not None and prod(rescale) != weight[0]:
        return f"rescales {prod(rescale)} output channels, the weight has {weight[0]}"
    return None
