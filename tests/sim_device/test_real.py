"""What only a real device has: copies beside computing, its own generators and kernels, memory that runs out.

LORALOOM_TEST_DEVICE=cuda pytest tests/sim_device
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraloom.errors import OutOfMemory
from loraloom.models.attention import attention
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.computing import AttentionName, Computing
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency import residents as residents_module
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.storage import weights_bytes
from loraloom.weights.capacity import multiplies_fp8
from loraloom.weights.integers import exact_product
from tests import tiny_models as tiny
from tests.models.plain_loras import plain_lora
from tests.sim_device.device import NAME, Real, assert_near
from tests.sim_device.test_parts import checkpoint as checkpoint
from tests.sim_device.test_parts import sampled
from tests.sim_device.test_streaming import ACTIVATIONS, MARGIN, result, styled

ROUNDS = 8


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    """Large enough that copies take longer than launching what follows: 70 MB."""
    shapes = tiny.flux_shapes(width=512, context=64, pooled=64, double=3, single=6)
    folder = tmp_path_factory.mktemp("deep")
    return open_diffusion_model(tiny.write(folder / "flux.safetensors", shapes, torch.bfloat16))


@pytest.fixture
def small_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents_module, "MARGIN", MARGIN)


def streamed(model: DiffusionModel, share: float) -> Memory:
    size = weights_bytes(model.weights, torch.float32, "quantized")
    return Memory(NAME, "fp32", budget=int(share * size) + MARGIN + 64 * ACTIVATIONS)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_what_comes_ahead_is_never_read_too_early(
    real: Real, small_margin: None, deep: DiffusionModel, share: float
) -> None:
    """The same numbers every time, and those of weights that stay, while strengths change in between."""
    models = [styled(deep), deep, deep.with_lora(lora_of(deep).at(-0.2)[0])]
    whole, part = Memory(NAME, "fp32"), streamed(deep, share)
    wanted = [result(whole, model) for model in models]
    assert not torch.equal(wanted[0], wanted[1])
    for number in range(ROUNDS):
        for model, expected in zip(models, wanted, strict=True):
            found = result(part, model)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"round {number}")
    part.release()
    whole.release()


def lora_of(model: DiffusionModel) -> Any:
    return plain_lora("two", {name: s for name, s in model.weights.shapes.items() if len(s) == 2})


def test_weights_return_bit_for_bit(real: Real, deep: DiffusionModel) -> None:
    memory = Memory(NAME, "bf16")
    before = [tensor.clone() for tensor in memory.resident_module(deep).parameters()]
    memory.resident_module(styled(deep))
    after = memory.resident_module(deep).parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    memory.release()


@contextmanager
def at_most(size: int) -> Generator[None]:
    """PyTorch gives no more than so many bytes, its blocks' gaps and workspaces of libraries included."""
    whole = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / whole))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.skipif(not NAME.startswith("cuda"), reason="bounds PyTorch's allocator of CUDA")
@pytest.mark.parametrize("is_said", [True, False])
@pytest.mark.parametrize("room", [200 << 20, 150 << 20, 80 << 20])
def test_memory_that_runs_out(
    real: Real,
    small_margin: None,
    deep: DiffusionModel,
    room: int,
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fewer weights stay, and the result is the same; where even the workspaces of cuBLAS, one of 32 MB for
    each stream, leave nothing, an error says that it is the memory. not is_said: as if nothing told that
    PyTorch's share is bounded, as with drivers that promise the host's memory."""
    memory = Memory(NAME, "fp32")
    wanted = result(memory, styled(deep))
    memory.release()
    used = real["live"]
    if not is_said:
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device=None: 1.0)
    with at_most(used + room):
        try:
            found = result(memory, styled(deep))
        except OutOfMemory as error:
            assert room == 80 << 20 and re.search(r"\d [GM]i?B", str(error))
        else:
            assert_near(found, wanted, rtol=1e-5, atol=1e-5)
    memory.release()
    assert real["live"] <= used + (1 << 20)
    assert_near(result(memory, styled(deep)), wanted, rtol=1e-5, atol=1e-5)
    memory.release()


def test_noise_that_is_drawn_on_the_device(real: Real, checkpoint: Path) -> None:
    memory = Memory(NAME, "fp32")
    for name in ("dpmpp_sde_gpu", "dpmpp_2m_sde_gpu"):
        first, again = (sampled(memory, checkpoint, name) for _ in range(2))
        assert torch.isfinite(first).all() and torch.equal(first, again)


KINDS: tuple[AttentionName, ...] = ("math", "flash", "efficient", "cudnn")


@pytest.mark.parametrize("kind", KINDS)
def test_attention(real: Real, kind: AttentionName) -> None:
    device = torch.device(NAME)
    given = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 8, 333, 64, generator=given).to(device, torch.bfloat16) for _ in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    with attention(kind, device)():
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert float((found.float() - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_attention_of_a_network(real: Real, deep: DiffusionModel, kind: AttentionName) -> None:
    wanted = result(Memory(NAME, "fp32"), deep)
    found = result(Memory(NAME, "bf16", computing=Computing(attention=kind)), deep)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_compiled_blocks(real: Real, checkpoint: Path) -> None:
    model = open_checkpoint(checkpoint)[0]
    plain = Memory(NAME, "fp32")
    compiled = Memory(NAME, "fp32", computing=Computing(compiled=True))
    for one in (model, styled(model), model):
        assert_near(result(compiled, one), result(plain, one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 64, 32), (17, 8, 8), (5, 33, 21), (300, 512, 1024)])
def test_products_of_integers_are_exact(real: Real, sizes: tuple[int, int, int]) -> None:
    n, k, m = sizes
    given = torch.Generator().manual_seed(n)
    x, weight = (torch.randint(-128, 128, (rows, k), generator=given, dtype=torch.int8) for rows in (n, m))
    wanted = x.double() @ weight.double().T
    found: Tensor = exact_product(x.to(NAME), weight.to(NAME))
    assert torch.equal(found.double().cpu(), wanted)


def test_products_of_8_bits(real: Real, tmp_path: Path) -> None:
    """Near those of widened weights, as near as inputs of 3 bits of mantissa can be."""
    shapes = tiny.flux_shapes(width=512, context=64, pooled=64, double=1, single=1)
    path = tiny.write(tmp_path / "flux.safetensors", shapes, torch.bfloat16)
    plain, fast = (
        result(Memory(NAME, "bf16"), open_diffusion_model(path, kind))
        for kind in ("fp8_e4m3fn", "fp8_e4m3fn_fast")
    )
    off = float((fast - plain).norm() / plain.norm())
    assert off < 0.15
    assert off > 0 if multiplies_fp8(torch.device(NAME)) else off == 0
