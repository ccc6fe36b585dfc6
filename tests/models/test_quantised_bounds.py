"""How far off quantised weights, and LoRAs on them, may be: bounds that follow from the rounding, for every
weight and every output, and nothing beyond them.

u is the unit roundoff of the type to compute in, 2⁻ᵖ for p bits of significand. Sums of n products are added
up in float32, which costs n · 2⁻²⁴ of the sum of their magnitudes (Higham 2002, 3.1). Terms of second order
are covered by `SECOND`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.models.residency.resident import Arithmetic, Resident
from loraloom.weights.layers import PackedLayer
from loraloom.weights.packed import Packed
from loraloom.weights.patch import PatchUse
from loraloom.weights.rotation import rotated
from tests.models.test_quantised_algebras import BLUEPRINT, FORMATS, PLACES, SHAPE, lora_of, weights, written

SECOND = 1.05
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
F16, F32 = 2.0**-11, 2.0**-24
STRENGTH = 0.7


def floats(values: Tensor, smallest: float, bits: int, largest: float) -> Tensor:
    """Half of the step between floats of so many bits of significand at these values, the nearest of which is
    taken; beyond the largest, how far beyond. smallest: step of the subnormal ones."""
    size = values.abs()
    step = torch.maximum(size.log2().floor().exp2() * 2.0 ** (1 - bits), torch.tensor(smallest))
    return torch.maximum(step / 2, size - largest)


def of_integers(packed: Packed, weight: Tensor) -> Tensor:
    """Half of the row's scale."""
    return (packed.parts["scale"].double().reshape(-1, 1) / 2).expand(weight.shape)


def of_fp8(packed: Packed, weight: Tensor) -> Tensor:
    scale = packed.parts["scale"].double()
    return floats(weight / scale, 2.0**-9, 4, 448.0) * scale


def of_mxfp8(packed: Packed, weight: Tensor) -> Tensor:
    scale = (packed.parts["exponent"].double() - 127).exp2().repeat_interleave(32, 1)
    return floats(weight / scale, 2.0**-9, 4, 448.0) * scale


def of_nvfp4(packed: Packed, weight: Tensor) -> Tensor:
    scale = (packed.parts["scale"].double() * packed.parts["whole"].double()).repeat_interleave(16, 1)
    return floats(weight / scale, 0.5, 2, 6.0) * scale


@pytest.mark.parametrize(
    ("to", "bound", "group"),
    [
        ("int8", of_integers, 0),
        ("int8:convrot64", of_integers, 64),
        ("convrot_w4a4:64", of_integers, 64),
        ("fp8", of_fp8, 0),
        ("mxfp8", of_mxfp8, 0),
        ("nvfp4", of_nvfp4, 0),
    ],
)
def test_each_weight_is_the_nearest_that_its_format_has(
    to: str, bound: Callable[[Packed, Tensor], Tensor], group: int, tmp_path: Path
) -> None:
    source = written(tmp_path, to)
    for place in PLACES:
        packed = source.packed(f"{place}.weight")
        assert packed is not None
        weight, found = weights()[f"{place}.weight"], source.read(f"{place}.weight")
        if group:  # what is rounded are the turned weights
            weight, found = rotated(weight, group), rotated(found, group)
        weight, found = weight.double(), found.double()
        turning = 2 * group**0.5 * group * F32 * weight.abs().max() if group else 0.0
        allowed = bound(packed, weight) + 4 * F32 * weight.abs() + turning
        over = (found - weight).abs() / allowed
        assert float(over.max()) <= 1.0
        assert float(over.max()) > 0.9  # the bound is no larger than it has to be


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_each_weight_of_gguf_is_within_its_step(kind: str, tmp_path: Path) -> None:
    """Steps and offsets are rounded to float16. Q4_0 has -8…7, and no 8 for what is as large as its largest
    of the other sign."""
    source = written(tmp_path, f"gguf:{kind}")
    for place in PLACES:
        blocks = weights()[f"{place}.weight"].double().unflatten(1, (-1, 32))
        found = source.read(f"{place}.weight").double().unflatten(1, (-1, 32))
        low, high, size = blocks.amin(-1), blocks.amax(-1), blocks.abs().amax(-1)
        step, count, share = {
            "Q8_0": (size / 127, 127, 0.5),
            "Q4_0": (size / 8, 8, 1.0),
            "Q5_1": ((high - low) / 31, 31, 0.5),
        }[kind]
        allowed = (share + count * F16) * step + F16 * low.abs() * (kind == "Q5_1")
        over = (found - blocks).abs() / (allowed * (1 + 8 * F32))[..., None]
        assert 0.9 < float(over.max()) <= 1.0


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("algorithm", ["dora-output", "loha", "lokr-low", "oft", "full"])
@pytest.mark.parametrize("to", FORMATS)
def test_what_is_merged_is_patched_in_float32_and_rounded_once(
    to: str, algorithm: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = written(tmp_path, to)
    loaded = lora_of(tmp_path, algorithm, source)
    resident = Resident(BLUEPRINT, source, dtype=dtype, device=torch.device("cpu"))
    resident.apply((PatchUse(loaded.model, STRENGTH),))
    for place in ("whole", "table"):
        (patch,) = loaded.model.patches()[f"{place}.weight"]
        exact = patch.apply(source.read(f"{place}.weight"), STRENGTH)
        layer = resident.module.get_submodule(place)
        assert isinstance(layer, PackedLayer) and layer.merged is not None
        off = (layer.merged.double() - exact.double()).abs()
        assert bool((off <= ROUNDOFF[dtype] * exact.double().abs()).all())


def of_products(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, dtype: torch.dtype) -> Tensor:
    """Roundings on the way of the weight's part: of its values, of its scale, of the output, of the product
    with the scale, of the sum with the LoRA; of the LoRA's: of both factors, of what is between them, of the
    output, of the sum."""
    through, beside = x.abs() @ weight.abs().T, x.abs() @ down.abs().T @ up.abs().T
    return (5 * ROUNDOFF[dtype] + (SHAPE[1] + len(down)) * F32) * (through + beside)


def of_inputs(x: Tensor, weight: Tensor, packed: Packed, dtype: torch.dtype) -> Tensor:
    """Where inputs are rounded to integers: each is the nearest of so many levels of its row."""
    group = int(packed.settings.get("convrot_groupsize", 0))
    turned, stored = (rotated(one, group) if group else one for one in (x, weight))
    levels = 7 if packed.format.name == "convrot_w4a4" else 127
    scale = turned.abs().amax(-1, keepdim=True) / levels
    of_floats = (3 * ROUNDOFF[dtype] + group * F32) * (turned.abs() @ stored.abs().T)
    return scale / 2 * stored.abs().sum(-1) + of_floats


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("arithmetic", ["native", "widened"])
@pytest.mark.parametrize("to", ["int8", "convrot_w4a4:64", *FORMATS, "gguf:Q8_0", "gguf:Q4_0"])
def test_a_lora_beside_a_quantised_weight_is_off_by_its_roundings(
    to: str, arithmetic: Arithmetic, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = written(tmp_path, to)
    packed, weight = source.packed("whole.weight"), source.read("whole.weight").double()
    assert packed is not None
    is_rounded = arithmetic == "native" and packed.format.rounds_inputs
    if is_rounded and dtype != torch.float32:
        pytest.skip("the quotient is rounded to bfloat16 before it is to an integer, as in ComfyUI")
    loaded = lora_of(tmp_path, "lora", source)
    resident = Resident(BLUEPRINT, source, dtype=dtype, device=torch.device("cpu"), arithmetic=arithmetic)
    (patch,) = loaded.model.patches()["whole.weight"]
    factors = patch.factors()
    assert factors is not None
    down, up = factors.down.double(), factors.up.double() * STRENGTH
    x = torch.randn(40, SHAPE[1], generator=torch.Generator().manual_seed(7)).to(dtype)
    found: list[Tensor] = []
    for stack in ((), (PatchUse(loaded.model, STRENGTH),)):
        resident.apply(stack)
        with torch.inference_mode():
            found.append(resident.module.get_submodule("whole")(x).double())
    x, (before, after) = x.double(), found
    bound = of_products(x, weight, down, up, dtype)
    alone, more = (after - before - x @ down.T @ up.T).abs(), x @ (weight + up @ down).T
    assert bool((alone <= 2 * SECOND * bound).all())
    if is_rounded:
        bound = bound + of_inputs(x, weight, packed, dtype)
    over = float(((after - more).abs() / (SECOND * bound)).max())
    assert 0.005 < over <= 1.0  # sums of many come nowhere near the worst case
