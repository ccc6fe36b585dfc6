"""A resident module: filled exactly, patched exactly, restored bit for bit."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import ModelFileError
from loraloom.models.diffusion_network import Run
from loraloom.models.families.flux.family import FAMILY as FLUX
from loraloom.models.families.krea2.family import FAMILY as KREA2
from loraloom.models.families.sd15.family import FAMILY as SD15
from loraloom.models.family import Placement
from loraloom.models.residency.resident import Resident
from loraloom.models.residency.slots import Slot
from loraloom.models.residency.values import Storage
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.weights.layers import PackedLayer, PackedLinear
from loraloom.weights.patch import PatchUse, Stack
from loraloom.weights.source import WeightSource
from loraloom.weights.tensor_file import TensorFile
from tests import tiny_models as tiny
from tests.families.models import krea2
from tests.models.plain_loras import PlainLora, PlainPatch, plain_lora

CPU = torch.device("cpu")
QKV = "double_blocks.0.img_attn.qkv.weight"


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> WeightSource:
    path = tmp_path_factory.mktemp("models") / "unet.safetensors"
    return WeightSource.of_file(TensorFile(tiny.write(path, tiny.unet_shapes())))


def flux(path: Path, dtype: torch.dtype) -> WeightSource:
    return WeightSource.of_file(TensorFile(tiny.write_flux(path, dtype=dtype)))


def resident_unet(source: WeightSource, dtype: torch.dtype = torch.float32) -> Resident:
    return Resident(SD15.blueprint(source.shapes), source, dtype=dtype, device=CPU)


def resident_flux(
    source: WeightSource, dtype: torch.dtype = torch.float32, storage: Storage = "quantized"
) -> Resident:
    return Resident(FLUX.blueprint(source.shapes), source, dtype=dtype, device=CPU, storage=storage)


def digest(resident: Resident) -> str:
    """A hash of every bit of the module."""
    found = hashlib.sha256()
    tensors = resident.module.state_dict()
    for name, layer in resident.module.named_modules():
        if isinstance(layer, PackedLayer):
            assert layer.packed is not None and layer.low_rank is None
            tensors |= {f"{name}.{role}": part for role, part in layer.packed.parts.items()}
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def linear_weights(source: WeightSource) -> dict[str, tuple[int, ...]]:
    return {
        n: s
        for n, s in source.shapes.items()
        if n.endswith((".to_q.weight", ".conv.weight", "proj_in.weight"))
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parameters_are_the_files_values(unet: WeightSource, dtype: torch.dtype) -> None:
    module = resident_unet(unet, dtype).module
    weight = module.get_parameter("down_blocks.0.resnets.0.conv1.weight")
    assert torch.equal(weight, unet.read("input_blocks.1.0.in_layers.2.weight", dtype))
    assert {p.dtype for p in module.parameters()} == {dtype}


def test_weights_in_the_computing_type_are_mapped(unet: WeightSource) -> None:
    module = resident_unet(unet, torch.float16).module
    mapped = unet.map("out.2.weight")
    assert module.get_parameter("conv_out.weight").data_ptr() == mapped.data_ptr()


def test_norms_that_add_to_their_weights_stay_in_float32(tmp_path: Path) -> None:
    source = WeightSource.of_file(TensorFile(krea2.network().write(tmp_path / "krea2.safetensors")))
    resident = Resident(KREA2.blueprint(source.shapes), source, dtype=torch.bfloat16, device=CPU)
    parameters = dict(resident.module.named_parameters())
    norm = parameters["transformer_blocks.0.norm1.weight"]
    assert torch.equal(norm, source.read("blocks.0.prenorm.scale", torch.float32))
    kept = {name for name, parameter in parameters.items() if parameter.dtype == torch.float32}
    assert kept == {name for name in parameters if "norm" in name}
    given = Inputs({"context": Tokens(torch.randn(1, 3, krea2.LAYERS * krea2.TEXT))})
    run = Run(KREA2.blueprint(source.shapes).config, KREA2.latents, torch.bfloat16)
    output = KREA2.network.forward(resident.module, torch.randn(1, 16, 4, 4), torch.ones(1), given, run)
    assert output.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_hundred_changes_restore_every_bit(unet: WeightSource, dtype: torch.dtype) -> None:
    resident = resident_unet(unet, dtype)
    base = digest(resident)
    shapes = linear_weights(unet)
    loras = [
        plain_lora(f"lora {n}", dict(random.Random(n).sample(sorted(shapes.items()), 4))) for n in range(4)
    ]
    chance = random.Random(7)
    stack: Stack = ()
    for _ in range(200):
        stack = tuple(
            PatchUse(chance.choice(loras), chance.choice((-1.0, 0.0, 0.5, 1.0)))
            for _ in range(chance.randrange(4))
        )
        resident.apply(stack)
    last = resident.module.state_dict()
    fresh = resident_unet(unet, dtype)
    fresh.apply(stack)
    assert all(torch.equal(last[name], tensor) for name, tensor in fresh.module.state_dict().items())
    resident.apply(())
    assert digest(resident) == base


def test_only_what_changed_is_rebuilt(unet: WeightSource) -> None:
    resident = resident_unet(unet)
    names = list(linear_weights(unet))
    one = plain_lora("one", {n: unet.shapes[n] for n in names[:3]})
    two = plain_lora("two", {n: unet.shapes[n] for n in names[2:4]})
    assert resident.apply(one.at(1.0)) == 3
    assert resident.apply(one.at(1.0)) == 0
    assert resident.apply((*one.at(1.0), *two.at(0.5))) == 2
    assert resident.apply((*one.at(1.0), *two.at(0.25))) == 2
    assert resident.apply(two.at(0.25)) == 3
    assert resident.apply((*two.at(0.25), *one.at(0.0))) == 0
    assert resident.apply(()) == 2


def test_the_sum_is_made_in_float32_and_rounded_once(unet: WeightSource) -> None:
    name = "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    resident = resident_unet(unet, torch.bfloat16)
    lora = plain_lora("many", {name: unet.shapes[name]})
    resident.apply(lora.at(0.1) * 8)
    (patch,) = lora.held[name]
    assert isinstance(patch, PlainPatch)
    exact = unet.read(name, torch.float64)
    exact += 8 * 0.1 * (patch.up.double() @ patch.down.double())
    found = resident.module.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    half_a_step = torch.exp2(torch.floor(torch.log2(exact.abs()))) * 2**-8  # of 8 significant bits
    assert bool(((found.double() - exact).abs() <= half_a_step + 1e-6).all())


def test_a_failed_change_is_made_good(unet: WeightSource) -> None:
    class Broken(PlainPatch):
        def apply(self, weight: Tensor, strength: float) -> Tensor:
            weight.zero_()
            raise RuntimeError("out of luck")

    names = list(linear_weights(unet))[:2]
    resident = resident_unet(unet)
    base = digest(resident)
    good = plain_lora("good", {n: unet.shapes[n] for n in names})
    bad = PlainLora("bad", {names[0]: [Broken(torch.zeros(2, 1), torch.zeros(1, 2), "broken")]})
    resident.apply(good.at(1.0))
    with pytest.raises(RuntimeError, match="luck"):
        resident.apply(bad.at(1.0))
    resident.apply(())
    assert digest(resident) == base


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_rows_of_a_fused_weight_reach_their_layer_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    source = flux(tmp_path / "flux.safetensors", dtype)
    resident, base = resident_flux(source), resident_flux(source)
    resident.apply(plain_lora("k", {QKV: source.shapes[QKV]}, {QKV: (128, 256)}).at(1.0))
    x = torch.randn(3, 128)
    for name, changes in (("to_q", False), ("to_k", True), ("to_v", False)):
        path = f"transformer_blocks.0.attn.{name}"
        same = torch.equal(resident.module.get_submodule(path)(x), base.module.get_submodule(path)(x))
        assert same is not changes


def test_compressed_weights_stay_so_and_give_the_merged_result(tmp_path: Path) -> None:
    source = flux(tmp_path / "flux.safetensors", torch.float8_e4m3fn)
    beside, merged = resident_flux(source), resident_flux(source)
    before = digest(beside)
    shapes = {QKV: source.shapes[QKV]}
    beside.apply((*plain_lora("a", shapes).at(1.0), *plain_lora("b", shapes, {QKV: (100, 200)}).at(-0.5)))
    merged.apply(
        (
            *plain_lora("a", shapes, dense=True).at(1.0),
            *plain_lora("b", shapes, {QKV: (100, 200)}, True).at(-0.5),
        )
    )
    x = torch.randn(3, 128)
    for name in ("to_q", "to_k", "to_v"):
        path = f"transformer_blocks.0.attn.{name}"
        one, other = beside.module.get_submodule(path), merged.module.get_submodule(path)
        torch.testing.assert_close(one(x), other(x), rtol=1e-5, atol=1e-5)
        assert isinstance(one, PackedLinear) and isinstance(other, PackedLinear)
        assert one.packed is not None and one.packed.parts["weight"].dtype == torch.float8_e4m3fn
        assert one.low_rank is not None
        assert other.packed is None and other.weight.dtype == torch.float32
    for resident in (beside, merged):
        resident.apply(())
        assert digest(resident) == before
        assert torch.equal(resident.module.get_submodule("transformer_blocks.0.attn.to_q")(x), _q(source, x))


def _q(source: WeightSource, x: Tensor) -> Tensor:
    weight, bias = (
        source.read(QKV, torch.float32)[:128],
        source.read(QKV.replace("weight", "bias"), torch.float32),
    )
    return F.linear(x, weight, bias[:128])


@pytest.mark.parametrize("per_row", [False, True])
def test_scaled_storage_gives_the_scaled_result(tmp_path: Path, per_row: bool) -> None:
    shapes = tiny.flux_shapes()
    tensors = {name: tiny.tensor(name, shape).bfloat16() for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if len(shape) == 2:
            wide = tiny.tensor(name, shape)
            scale = (wide.abs().amax(dim=1, keepdim=True) if per_row else wide.abs().max()) / 448
            tensors[name] = (wide / scale).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = scale.reshape(-1)
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "scaled.safetensors")
    source = WeightSource.of_file(TensorFile(tmp_path / "scaled.safetensors"))
    resident = resident_flux(source)
    layer = resident.module.get_submodule("transformer_blocks.0.attn.to_k")
    x = torch.randn(3, 128)
    plain, weight = layer(x), source.read(QKV)[128:256]
    bias = source.read(QKV.replace("weight", "bias"), torch.float32)[128:256]
    torch.testing.assert_close(plain, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    lora = plain_lora("a", {QKV: source.shapes[QKV]})
    (patch,) = lora.held[QKV]
    assert isinstance(patch, PlainPatch)
    changed = weight + 0.5 * (patch.up @ patch.down)[128:256]
    for dense in (False, True):
        resident.apply(plain_lora("a", {QKV: source.shapes[QKV]}, dense=dense).at(0.5))
        torch.testing.assert_close(layer(x), F.linear(x, changed, bias), rtol=1e-5, atol=1e-5)
        resident.apply(())
        assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, "stored"], ids=str)
def test_storage_can_be_chosen(tmp_path: Path, storage: Storage) -> None:
    source = flux(tmp_path / "flux.safetensors", torch.bfloat16)
    resident = resident_flux(source, storage=storage)
    layer = resident.module.get_submodule("transformer_blocks.0.attn.to_q")
    narrow = torch.bfloat16 if storage == "stored" else storage
    assert isinstance(layer, PackedLinear) and layer.packed is not None
    assert torch.equal(layer.weight.float(), source.read(QKV, torch.float32)[:128].to(narrow).float())
    assert layer.packed.parts["weight"].dtype == narrow
    assert layer.bias is not None and layer.bias.dtype == torch.float32


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    shapes = tiny.unet_shapes()
    del shapes["out.2.bias"]
    shapes["left.over.weight"] = (3, 3)
    source = WeightSource.of_file(TensorFile(tiny.write(tmp_path / "a.safetensors", shapes)))
    with pytest.raises(
        ModelFileError, match=r"a\.safetensors.*missing: conv_out\.bias.*unknown: left\.over\.weight"
    ):
        resident_unet(source)
    shapes = tiny.unet_shapes() | {"out.0.bias": (7,)}
    source = WeightSource.of_file(TensorFile(tiny.write(tmp_path / "b.safetensors", shapes)))
    with pytest.raises(ModelFileError, match=r"'out\.0\.bias' has shape \[7\]; \[32\] was expected"):
        resident_unet(source)


def test_values_go_to_the_device_whatever_the_constructor_made() -> None:
    """Norms are made with values, on the CPU: they must not stay there."""
    norm = torch.nn.LayerNorm(4)
    slot = Slot(norm, "weight", torch.Size((4,)), Placement("norm.weight"))
    slot.write(torch.zeros(4), torch.float32, torch.device("meta"), in_place=True, keep=True)
    assert norm.weight.device.type == "meta"
