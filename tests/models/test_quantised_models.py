"""A network on quantised weights of every format: its products, and LoRAs on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.checkpoint import open_diffusion_model
from loraloom.models.families.flux.family import FAMILY as FLUX
from loraloom.models.families.sd15.family import FAMILY as SD15
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.resident import Arithmetic, Resident
from loraloom.models.residency.storage import weights_bytes
from loraloom.models.residency.unmerged import Unmerged
from loraloom.weights.layers import PackedConv2d, PackedLayer, PackedLinear
from loraloom.weights.patch import Stack
from loraloom.weights.quantise import quantise_file
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile
from tests import tiny_models as tiny
from tests.models.plain_loras import PlainPatch, plain_lora

CPU = torch.device("cpu")
FORMATS = (
    "int8",
    "int8:convrot64",
    "fp8",
    "fp8:e5m2",
    "mxfp8",
    "nvfp4",
    "convrot_w4a4:64",
    "gguf:Q8_0",
    "gguf:Q4_0",
)
QKV = "double_blocks.0.img_attn.qkv.weight"
OUT = "double_blocks.0.img_attn.proj.weight"
FUSED = ("to_q", "to_k", "to_v")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    plain = tiny.write_flux(folder / "flux.safetensors", dtype=torch.bfloat16)
    found = {"plain": plain}
    for to in FORMATS:
        found[to] = folder / (to.replace(":", "_") + (".gguf" if "gguf" in to else ".safetensors"))
        quantise_file(plain, to, found[to], architecture="flux")
    return found


def source_of(path: Path) -> WeightSource:
    return WeightSource.of_file(TensorFile(path))


def resident_of(
    source: WeightSource, arithmetic: Arithmetic = "native", dtype: torch.dtype = torch.float32
) -> Resident:
    return Resident(FLUX.blueprint(source.shapes), source, dtype=dtype, device=CPU, arithmetic=arithmetic)


def layer(resident: Resident, name: str) -> PackedLinear:
    found = resident.module.get_submodule(f"transformer_blocks.0.attn.{name}")
    assert isinstance(found, PackedLinear)
    return found


def oracle(
    source: WeightSource, native: str, rows: slice, change: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weight and bias in float32, from the file alone."""
    weight = source.read(native, torch.float32) + change
    return weight[rows], source.read(native.replace("weight", "bias"), torch.float32)[rows]


def rows_of(name: str) -> slice:
    index = FUSED.index(name)
    return slice(128 * index, 128 * (index + 1))


@pytest.mark.parametrize("to", FORMATS)
def test_layers_and_fused_rows_are_those_of_the_file(files: dict[str, Path], to: str) -> None:
    source = source_of(files[to])
    widened, native = resident_of(source, "widened"), resident_of(source)
    x = torch.randn(2, 3, 128)
    for name in FUSED:
        weight, bias = oracle(source, QKV, rows_of(name))
        wanted = F.linear(x, weight, bias)
        torch.testing.assert_close(layer(widened, name)(x), wanted, rtol=1e-5, atol=1e-5)
        found = layer(native, name)(x)
        rounds = layer(native, name).packed.format.rounds_inputs  # pyright: ignore[reportOptionalMemberAccess]
        tolerance = (0.2 if "w4a4" in to else 0.01) if rounds else 1e-5
        assert float((found - wanted).norm() / wanted.norm()) < tolerance
        assert torch.equal(found, layer(widened, name)(x)) is not rounds
        torch.testing.assert_close(layer(native, name).weight, weight)


def test_what_comfyui_multiplies_as_integers_is_so_here(files: dict[str, Path]) -> None:
    """y = (round(x / s) · q) s s_w by hand."""
    source = source_of(files["int8"])
    packed = source.packed(QKV)
    assert packed is not None
    weight, scale = packed.parts["weight"].long()[:128], packed.parts["scale"][:128]
    x = torch.randn(4, 128)
    step = x.abs().amax(1, keepdim=True) / 127
    sums = (x / step).round().long() @ weight.T
    bias = source.read(QKV.replace("weight", "bias"), torch.float32)[:128]
    wanted = sums * (step * scale.T) + bias
    torch.testing.assert_close(layer(resident_of(source), "to_q")(x), wanted, rtol=1e-6, atol=1e-6)


def stack_of(source: WeightSource, kind: str) -> tuple[Stack, Tensor]:
    """LoRAs on the fused weight (one of them on some of its rows), and the change that they make."""
    shapes = {QKV: source.shapes[QKV]}
    one = plain_lora("one", shapes, dense=kind == "dense")
    two = plain_lora("two", shapes, {QKV: (100, 300)}, dense=kind in ("dense", "mixed"))
    change = torch.zeros(shapes[QKV])
    for lora, strength in ((one, 0.75), (two, -0.5)):
        for patch in lora.held[QKV]:
            begin, end = patch.rows or (0, len(change))
            change[begin:end] = patch.apply(change[begin:end].clone(), strength)
    return (*one.at(0.75), *two.at(-0.5)), change


@pytest.mark.parametrize("kind", ["low rank", "dense", "mixed"])
@pytest.mark.parametrize("to", FORMATS)
def test_loras_are_exact_on_every_format(files: dict[str, Path], to: str, kind: str) -> None:
    source = source_of(files[to])
    resident, base = resident_of(source), resident_of(source)
    stack, change = stack_of(source, kind)
    x = torch.randn(3, 128)
    resident.apply(stack)
    for name in FUSED:
        found = layer(resident, name)
        if kind == "low rank":  # beside the weight: exactly the full-precision change
            wanted = layer(base, name)(x) + x @ change[rows_of(name)].T
            assert found.packed is not None and found.merged is None
        else:  # the one weight widened, the change merged in
            weight, bias = oracle(source, QKV, rows_of(name), change)
            wanted = F.linear(x, weight, bias)
            assert found.packed is None and found.low_rank is None
        torch.testing.assert_close(found(x), wanted, rtol=1e-4, atol=1e-4)
    other = resident.module.get_submodule("transformer_blocks.0.attn.to_out.0")
    assert isinstance(other, PackedLinear) and other.packed is not None and other.low_rank is None
    resident.apply(())
    for name in FUSED:
        assert torch.equal(layer(resident, name)(x), layer(base, name)(x))


@pytest.mark.parametrize("to", FORMATS)
def test_a_strength_is_switched_without_touching_the_weight(files: dict[str, Path], to: str) -> None:
    source = source_of(files[to])
    resident = resident_of(source)
    lora = plain_lora("one", {QKV: source.shapes[QKV]})
    before = {name: layer(resident, name).packed for name in FUSED}
    for strength in (1.0, 0.25, -2.0):
        resident.apply(lora.at(strength))
        assert {name: layer(resident, name).packed for name in FUSED} == before
    (patch,) = lora.held[QKV]
    assert isinstance(patch, PlainPatch)
    beside = layer(resident, "to_k").low_rank
    assert beside is not None
    torch.testing.assert_close(beside[1], -2.0 * patch.up[128:256])


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dense", [False, True])
def test_loras_of_single_conditionings_run_on_quantised_layers(
    files: dict[str, Path], to: str, dense: bool
) -> None:
    source = source_of(files[to])
    resident = resident_of(source)
    lora = plain_lora("one", {QKV: source.shapes[QKV]}, dense=dense)
    x = torch.randn(3, 128)
    plain = layer(resident, "to_v")(x)
    placements = FLUX.blueprint(source.shapes).placements
    change = lora.held[QKV][0].apply(torch.zeros(source.shapes[QKV]), 0.5)[256:]
    with Unmerged(placements, source, (lora.at(0.5),)).on(resident.module, 1):
        torch.testing.assert_close(layer(resident, "to_v")(x), plain + x @ change.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(resident, "to_v")(x), plain)


@pytest.mark.parametrize("to", FORMATS)
def test_loras_of_single_rows_run_on_quantised_layers(files: dict[str, Path], to: str) -> None:
    source = source_of(files[to])
    resident = resident_of(source)
    loras = [plain_lora(name, {QKV: source.shapes[QKV]}) for name in ("one", "two")]
    x = torch.randn(2, 128)
    plain = layer(resident, "to_v")(x)
    unmerged = Unmerged(
        FLUX.blueprint(source.shapes).placements, source, tuple(lora.at(0.5) for lora in loras)
    )
    with unmerged.on(resident.module, 2):
        found = layer(resident, "to_v")(x)
    for row, lora in enumerate(loras):
        change = lora.held[QKV][0].apply(torch.zeros(source.shapes[QKV]), 0.5)[256:]
        torch.testing.assert_close(found[row], plain[row] + x[row] @ change.T, rtol=1e-4, atol=1e-4)
    assert unmerged.work.flops == 0  # they would run beside the weights in any case


@pytest.mark.parametrize("to", FORMATS)
def test_a_quantised_file_is_in_memory_once(files: dict[str, Path], to: str) -> None:
    """Weights of blocks take what they take in the file; the rest what it takes to compute in."""
    source = source_of(files[to])
    resident = resident_of(source, dtype=torch.bfloat16)
    layers = [module for module in resident.module.modules() if isinstance(module, PackedLayer)]
    assert len(layers) > 20
    packed = [native for native in source.shapes if source.is_packed(native)]
    in_file = sum(source.stored_bytes(native) for native in packed)
    scales_filled_up = 64 << 10  # mxfp8 and nvfp4 fill their scales up in the file
    one_scale_for_several_layers = 256
    held = sum(layer.stored_bytes for layer in layers)
    assert in_file - scales_filled_up < held <= in_file + one_scale_for_several_layers
    rest = sum(
        torch.Size(shape).numel() * 2 for native, shape in source.shapes.items() if native not in packed
    )
    assert resident.nbytes <= in_file + rest + 4096


def test_the_arithmetic_is_chosen_in_memory(files: dict[str, Path]) -> None:
    model = open_diffusion_model(files["int8"])
    x = torch.randn(2, 128)
    found = {}
    for arithmetic in ("native", "widened"):
        module = Memory("cpu", "fp32", storage=arithmetic).resident_module(model)
        found[arithmetic] = module.get_submodule("transformer_blocks.0.attn.to_q")(x)
    weight, bias = oracle(model.weights, QKV, slice(0, 128))
    torch.testing.assert_close(found["widened"], F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["native"], found["widened"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", FORMATS)
def test_gradients_go_through_a_quantised_network(files: dict[str, Path], to: str) -> None:
    found = layer(resident_of(source_of(files[to])), "to_q")
    x = torch.randn(3, 128, requires_grad=True)
    found(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, found.weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)
    assert isinstance(found, nn.Linear)  # what looks for linear layers finds it


def test_convolutions_of_a_unet_stay_in_8_bits(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "unet.safetensors", tiny.unet_shapes(), torch.float8_e4m3fn)
    source = source_of(path)
    resident = Resident(SD15.blueprint(source.shapes), source, dtype=torch.float32, device=CPU)
    convolution = resident.module.get_submodule("conv_in")
    assert isinstance(convolution, PackedConv2d)
    x = torch.randn(1, 4, 8, 8)
    weight, bias = (source.read(f"input_blocks.0.0.{kind}", torch.float32) for kind in ("weight", "bias"))
    torch.testing.assert_close(convolution(x), F.conv2d(x, weight, bias, padding=1))
    lora = plain_lora("conv", {"input_blocks.0.0.weight": source.shapes["input_blocks.0.0.weight"]})
    resident.apply(lora.at(0.5))
    changed = lora.held["input_blocks.0.0.weight"][0].apply(weight.clone(), 0.5)
    torch.testing.assert_close(convolution(x), F.conv2d(x, changed, bias, padding=1))
    assert weights_bytes(source, torch.float32, "quantized") < 1.3 * path.stat().st_size
    resident.apply(())
    assert resident.nbytes <= weights_bytes(source, torch.float32, "quantized")


@pytest.mark.parametrize("to", ["int8", "fp8", "nvfp4"])
def test_a_quantised_file_in_diffusers_layout_stays_quantised(
    files: dict[str, Path], to: str, tmp_path: Path
) -> None:
    """q, k and v have scales of their own there, and are one native weight here."""
    module = resident_of(source_of(files["plain"])).module
    state = {name: value.bfloat16().contiguous() for name, value in module.state_dict().items()}
    save_file(state, tmp_path / "plain.safetensors")
    quantise_file(tmp_path / "plain.safetensors", to, tmp_path / "quantised.safetensors")
    model = open_diffusion_model(tmp_path / "quantised.safetensors")
    assert model.family is FLUX and model.weights.stays_packed(QKV)
    resident = resident_of(model.weights, "widened")
    file = TensorFile(tmp_path / "quantised.safetensors")
    x = torch.randn(3, 128)
    for name in FUSED:
        path = f"transformer_blocks.0.attn.{name}"
        weight, bias = (file.read(f"{path}.{kind}", torch.float32) for kind in ("weight", "bias"))
        assert layer(resident, name).packed is not None
        torch.testing.assert_close(layer(resident, name)(x), F.linear(x, weight, bias), rtol=1e-4, atol=1e-5)
