"""Whether an algebra's tensors fit the weight they are for, from shapes alone. No torch.

Everything that an algebra relies on is checked here, once; applying a patch cannot fail on shapes later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from loraloom.lora.alpha import is_old_glora
from loraloom.lora.component import Shape

Shapes = Mapping[str, Shape]


def misfit(kind: str, shapes: Shapes, weight: Shape) -> str | None:
    """Why the tensors do not fit a weight of this shape; None where they do."""
    problem = _RULES[kind](shapes, weight)
    if problem is not None:
        return problem
    return _misfit_magnitude(shapes, weight)


def lora_shape(shapes: Shapes, weight: Shape) -> Shape:
    """The shape that a LoRA's product has, where it may enlarge the weight."""
    down = shapes["down"]
    return (shapes["up"][0], *(down[1:] if len(down) == len(weight) else weight[1:]))


def _said(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "one value"


def _is_for(made: Shape, weight: Shape) -> str | None:
    """Compare the matrix (rows, columns) that a module makes with the weight's."""
    rows, columns = made
    if not weight or rows != weight[0] or columns != prod(weight[1:]):
        flat = (weight[0], prod(weight[1:])) if weight else ()
        return f"made for a weight of {_said(made)}, this one is {_said(flat)}"
    return None


def _lora(shapes: Shapes, weight: Shape) -> str | None:
    up, down = shapes["up"], shapes["down"]
    if len(up) < 2 or len(down) < 2 or 0 in up or 0 in down:
        return f"factors of shapes {_said(up)} and {_said(down)} are no matrices"
    rank, columns = down[0], prod(down[1:])
    if "mid" in shapes:
        mid = shapes["mid"]
        if len(mid) < 3 or mid[:2] != (up[1], rank) or prod(up) != up[0] * up[1] or columns != down[1]:
            return f"its middle factor {_said(mid)} does not join {_said(up)} and {_said(down)}"
        return _is_for((up[0], columns * prod(mid[2:])), weight)
    if prod(up[1:]) != rank:
        return f"rank {prod(up[1:])} of the up factor is not rank {rank} of the down factor"
    return _is_for((up[0], columns), weight)


def _loha(shapes: Shapes, weight: Shape) -> str | None:
    made: list[Shape] = []
    for index in "12":
        a, b, core = shapes[f"hada_w{index}_a"], shapes[f"hada_w{index}_b"], shapes.get(f"hada_t{index}")
        if len(a) != 2 or len(b) != 2:
            return f"factors of shapes {_said(a)} and {_said(b)} are no matrices"
        if core is not None:
            if len(core) < 3 or a[0] != core[0] or b[0] != core[1]:
                return f"its core {_said(core)} does not join {_said(a)} and {_said(b)}"
            made.append((a[1], b[1] * prod(core[2:])))
        elif a[1] != b[0]:
            return f"ranks {a[1]} and {b[0]} differ"
        else:
            made.append((a[0], b[1]))
    if made[0] != made[1]:
        return f"its two products are {_said(made[0])} and {_said(made[1])}"
    return _is_for(made[0], weight)


def _lokr(shapes: Shapes, weight: Shape) -> str | None:
    first = shapes.get("lokr_w1") or _product(shapes["lokr_w1_a"], shapes["lokr_w1_b"])
    if first is None or len(first) != 2:
        return "its first Kronecker factor is no matrix"
    core = shapes.get("lokr_t2")
    if "lokr_w2" in shapes:
        whole = shapes["lokr_w2"]
        second = (whole[0], prod(whole[1:])) if whole else None
    elif core is not None:
        a, b = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        if len(core) < 3 or len(a) != 2 or len(b) != 2 or a[0] != core[0] or b[0] != core[1]:
            return f"its core {_said(core)} does not join {_said(a)} and {_said(b)}"
        second = (a[1], b[1] * prod(core[2:]))
    else:
        second = _product(shapes["lokr_w2_a"], shapes["lokr_w2_b"])
    if second is None:
        return "its second Kronecker factor is no matrix"
    return _is_for((first[0] * second[0], first[1] * second[1]), weight)


def _product(a: Shape, b: Shape) -> Shape | None:
    """Shape of the matrix product of a and b (flattened behind its first dimension)."""
    if len(a) != 2 or len(b) < 2 or a[1] != b[0]:
        return None
    return (a[0], prod(b[1:]))


def _glora(shapes: Shapes, weight: Shape) -> str | None:
    a1, a2, b1, b2 = (shapes[role] for role in ("a1", "a2", "b1", "b2"))
    if min(map(len, (a1, a2, b1, b2))) < 2:
        return "its factors are no matrices"
    if is_old_glora(shapes):
        a1, a2, b1, b2 = a2, a1, b2, b1
    if "bm" in shapes:
        core = shapes["bm"]
        if len(core) < 3 or core[:2] != (b1[1], b2[0]):
            return f"its middle factor {_said(core)} does not join {_said(b1)} and {_said(b2)}"
        columns = b2[1] * prod(core[2:])
    else:
        columns = prod(b2[1:])
    if b1[1] != b2[0] or a1[1] != a2[0] or len(weight) < 2:
        return f"factors {_said(a1)}, {_said(a2)}, {_said(b1)}, {_said(b2)} do not chain"
    if a1[0] != weight[1] or a2[1] != weight[1]:
        return f"made for {a1[0]} input channels, the weight has {weight[1]}"
    return _is_for((b1[0], columns), weight)


def _oft(shapes: Shapes, weight: Shape) -> str | None:
    blocks = shapes["oft_blocks"]
    if len(blocks) != 3 or blocks[1] != blocks[2]:
        return f"rotation blocks of shape {_said(blocks)} are not square"
    return _rotates(blocks[0] * blocks[1], shapes, weight)


def _boft(shapes: Shapes, weight: Shape) -> str | None:
    blocks = shapes["oft_blocks"]
    stages, count, size, other = blocks
    if size != other or size % 2:
        return f"butterfly blocks of shape {_said(blocks)} are not square of even size"
    if stages and (count * size) % (2**stages * (size // 2)):
        return f"{stages} butterfly stages do not divide {count * size} channels"
    return _rotates(count * size, shapes, weight)


def _rotates(channels: int, shapes: Shapes, weight: Shape) -> str | None:
    if not weight or channels != weight[0]:
        return f"rotates {channels} output channels, the weight has {weight[0] if weight else 0}"
    if "rescale" in shapes and prod(shapes["rescale"]) != weight[0]:
        return f"rescales {prod(shapes['rescale'])} output channels, the weight has {weight[0]}"
    return None


def _boft_input(shapes: Shapes, weight: Shape) -> str | None:
    blocks = shapes["boft_r"]
    if len(blocks) != 4 or blocks[2] != blocks[3] or 0 in blocks:
        return f"butterfly blocks of shape {_said(blocks)} are not square"
    stages, count, size, _ = blocks
    if stages > 1 and (size % 2 or count % 2 ** (stages - 1)):
        return f"{stages} butterfly stages do not divide {count} blocks of {size}"
    channels = prod(weight[1:])
    if len(weight) < 2 or count * size != channels:
        return f"rotates {count * size} input channels, the weight has {channels}"
    if "boft_s" in shapes and prod(shapes["boft_s"]) != weight[0]:
        return f"scales {prod(shapes['boft_s'])} output channels, the weight has {weight[0]}"
    return None


def oftv2_block(values: int) -> int | None:
    """Block size n of a rotation stored as the n(n−1)/2 values of its upper triangle."""
    size = round((1 + (1 + 8 * values) ** 0.5) / 2)
    return size if size * (size - 1) // 2 == values else None


def _oftv2(shapes: Shapes, weight: Shape) -> str | None:
    blocks = shapes["oft_r"]
    size = oftv2_block(blocks[1]) if len(blocks) == 2 else None
    if size is None:
        return f"{_said(blocks)} holds no upper triangles"
    channels = prod(weight[1:])
    if blocks[0] * size != channels and not (blocks[0] == 1 and channels % size == 0):
        return f"rotates {blocks[0] * size} input channels, the weight has {channels}"
    return None


def _ia3(shapes: Shapes, weight: Shape) -> str | None:
    count = prod(shapes["ia3"] if "ia3" in shapes else shapes["weight"])
    if len(weight) < 2 or count not in (weight[0], weight[1]):
        return f"scales {count} channels, the weight is {_said(weight)}"
    return None


def _same(role: str) -> Callable[[Shapes, Shape], str | None]:
    def rule(shapes: Shapes, weight: Shape) -> str | None:
        made = shapes[role]
        if made == weight or (prod(made) == prod(weight) and made[:1] == weight[:1]):
            return None
        return f"made for {_said(made)}, this one is {_said(weight)}"

    return rule


def _full(shapes: Shapes, weight: Shape) -> str | None:
    return _same("diff" if len(weight) != 1 or "diff_b" not in shapes else "diff_b")(shapes, weight)


def _norm(shapes: Shapes, weight: Shape) -> str | None:
    return _same("w_norm" if "w_norm" in shapes else "b_norm")(shapes, weight)


def _sparse(shapes: Shapes, weight: Shape) -> str | None:
    indices, values = shapes["bias_indices"], shapes["bias_values"]
    if len(indices) != 2 or len(values) != 1 or indices[1] != values[0]:
        return f"{_said(values)} values for indices {_said(indices)}"
    if indices[0] > 2:
        return f"indices of {indices[0]} dimensions into a bias of {_said(weight)}"
    return None


def _misfit_magnitude(shapes: Shapes, weight: Shape) -> str | None:
    """DoRA's magnitude: one value per output row, or per input channel as [1, in, 1, 1]."""
    role = next((role for role in ("dora", "magnitude") if role in shapes), None)
    if role is None:
        return None
    shape = shapes[role]
    if len(weight) >= 2 and prod(shape) in (weight[0], weight[1]):
        return None
    return f"its DoRA magnitude has {prod(shape)} values, the weight is {_said(weight)}"


_RULES: Mapping[str, Callable[[Shapes, Shape], str | None]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "oft": _oft,
    "boft": _boft,
    "boft_input": _boft_input,
    "oftv2": _oftv2,
    "ia3": _ia3,
    "full": _full,
    "norm": _norm,
    "set": _same("set_weight"),
    "sparse": _sparse,
    "bias": _same("up_bias"),
}
