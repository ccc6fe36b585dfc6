"""Converting, merging, extracting and resizing: what comes out means what went in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.lora.algebras import registry
from loraloom.lora.alpha import Scale
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.convert import convert
from loraloom.lora.extract import CheckpointWeights, extract
from loraloom.lora.file import read_lora
from loraloom.lora.load import load_lora
from loraloom.lora.low_rank import reduce_matrix
from loraloom.lora.merge import merge, read_part
from loraloom.lora.place import place
from loraloom.lora.resize import resize
from loraloom.weights.patch import Target

from . import oracles
from .test_load import FLUX, H, random

SD = Component(
    "sd15",
    {
        "input_blocks.1.1.proj_in.weight": (8, 8, 1, 1),
        "input_blocks.1.1.proj_in.bias": (8,),
        "input_blocks.1.0.in_layers.2.weight": (8, 4, 3, 3),
        "out.0.weight": (8,),
    },
    {
        "down_blocks.0.attentions.0.proj_in": Target("input_blocks.1.1.proj_in.weight"),
        "down_blocks.0.resnets.0.conv1": Target("input_blocks.1.0.in_layers.2.weight"),
        "conv_norm_out": Target("out.0.weight"),
    },
)
CLIP = Component(
    "sd15",
    {"clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (12, 6)},
    {
        "clip_l.text_model.encoder.layers.0.mlp.fc1": Target(
            "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
        )
    },
)
BASE: dict[ComponentName, Component] = {"model": SD, "clip": CLIP}


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def _pair(
    name: str, out: int, inner: tuple[int, ...], rank: int, alpha: float, seed: int
) -> dict[str, Tensor]:
    ones = [1] * (len(inner) - 1)
    return {
        f"{name}.lora_up.weight": random(out, rank, *ones, seed=seed).half(),
        f"{name}.lora_down.weight": random(rank, *inner, seed=seed + 1).half(),
        f"{name}.alpha": torch.tensor(alpha),
    }


def _sd_lora(path: Path, seed: int = 0, alpha: float = 1.0) -> Path:
    tensors = _pair("lora_unet_down_blocks_0_attentions_0_proj_in", 8, (8, 1, 1), 2, alpha, seed)
    tensors |= _pair("lora_unet_down_blocks_0_resnets_0_conv1", 8, (4, 3, 3), 3, alpha, seed + 2)
    tensors |= _pair("lora_te_text_model_encoder_layers_0_mlp_fc1", 12, (6,), 2, alpha, seed + 4)
    return _save(path, tensors, {"ss_sd_model_name": "v1-5.safetensors"})


def deltas(path: Path, base: Mapping[ComponentName, Component], strength: float = 1.0) -> dict[str, Tensor]:
    """ΔW of every weight that a file changes, on zeros."""
    lora = load_lora(read_lora(path), base, strict=True)
    found: dict[str, Tensor] = {}
    for name, source in (("model", lora.model), ("clip", lora.clip)):
        for weight, patches in source.patches().items():
            changed = torch.zeros(base[name].shapes[weight])  # pyright: ignore[reportArgumentType]
            for patch in patches:
                rows = slice(*(patch.rows or (0, len(changed))))
                changed[rows] = patch.apply(changed[rows].clone(), strength)
            found[weight] = changed
    return found


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for weight, delta in expected.items():
        atol = tolerance * float(delta.abs().max())
        torch.testing.assert_close(found[weight], delta, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("first", ["native", "diffusers"])
def test_conversion_there_and_back_is_the_same_file(first: str, tmp_path: Path) -> None:
    original = _sd_lora(tmp_path / "a.safetensors", alpha=1.0)
    convert(read_lora(original), BASE, tmp_path / "b.safetensors", first)
    assert_same(deltas(tmp_path / "b.safetensors", BASE), deltas(original, BASE))
    convert(read_lora(tmp_path / "b.safetensors"), BASE, tmp_path / "c.safetensors", "kohya")
    assert_same(deltas(tmp_path / "c.safetensors", BASE), deltas(original, BASE))
    if first == "native":
        before, after = load_file(original), load_file(tmp_path / "c.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_lora(tmp_path / "c.safetensors").metadata["ss_sd_model_name"] == "v1-5.safetensors"


def test_diffusers_names_hold_alpha_in_the_up_factor(tmp_path: Path) -> None:
    original = _sd_lora(tmp_path / "a.safetensors", alpha=0.7)
    convert(read_lora(original), BASE, tmp_path / "b.safetensors", "diffusers")
    written = load_file(tmp_path / "b.safetensors")
    assert not any(name.endswith("alpha") for name in written)
    assert "unet.down_blocks.0.attentions.0.proj_in.lora_B.weight" in written
    assert_same(deltas(tmp_path / "b.safetensors", BASE), deltas(original, BASE))


@pytest.mark.parametrize("alphas", [(2.0, 2.0, 2.0), (1.0, 2.0, 3.0)])
def test_parts_of_a_fused_layer_are_joined_and_cut(alphas: tuple[float, ...], tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for index, (part, alpha) in enumerate(zip("qkv", alphas, strict=True)):
        tensors |= _pair(f"transformer.transformer_blocks.0.attn.to_{part}", H, (H,), 2, alpha, index * 7)
    tensors |= _pair("transformer.norm_out.linear", 2 * H, (H,), 2, 1.0, 50)
    original = _save(tmp_path / "a.safetensors", tensors)
    base: dict[ComponentName, Component] = {"model": FLUX}
    convert(read_lora(original), base, tmp_path / "b.safetensors", "kohya")
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight" in load_file(tmp_path / "b.safetensors")
    assert_same(deltas(tmp_path / "b.safetensors", base), deltas(original, base))
    convert(read_lora(tmp_path / "b.safetensors"), base, tmp_path / "c.safetensors", "diffusers")
    assert "transformer.transformer_blocks.0.attn.to_q.lora_B.weight" in load_file(tmp_path / "c.safetensors")
    assert_same(deltas(tmp_path / "c.safetensors", base), deltas(original, base))


PROJ, MODULE = "input_blocks.1.1.proj_in", "unet.down_blocks.0.attentions.0.proj_in"
SCALED = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6.0})}
SQUARE: dict[ComponentName, Component] = {
    "model": Component(
        "sd15",
        {f"{PROJ}.weight": (8, 8), f"{PROJ}.bias": (8,)},
        {MODULE.removeprefix("unet."): Target(f"{PROJ}.weight")},
    )
}


@pytest.mark.parametrize("dialect", ["kohya", "native", "diffusers"])
@pytest.mark.parametrize("kind", ["LoRA with a bias", "loha", "lokr-whole"])
def test_conversion_keeps_a_scale_that_stands_in_the_header_only(
    kind: str, dialect: str, tmp_path: Path
) -> None:
    if kind == "LoRA with a bias":
        tensors = {"lora_A.weight": random(2, 8), "lora_B.weight": random(8, 2), "lora_B.bias": random(8)}
    else:
        tensors = {k: v for k, v in oracles.trained(kind, (8, 8)).tensors.items() if k != "alpha"}
    original = _save(
        tmp_path / "a.safetensors", {f"{MODULE}.{key}": value for key, value in tensors.items()}, SCALED
    )
    assert any(one.gamma != 1 for one in _scales(original))
    convert(read_lora(original), SQUARE, tmp_path / "b.safetensors", dialect)
    assert "lora_adapter_metadata" not in read_lora(tmp_path / "b.safetensors").metadata
    assert_same(deltas(tmp_path / "b.safetensors", SQUARE), deltas(original, SQUARE))


def _scales(path: Path) -> list[Scale]:
    return [piece.scale for piece in place(read_lora(path), SQUARE).pieces]


def test_conversion_drops_nothing_silently(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.safetensors", _pair("lora_unet_no_such_place", 8, (8,), 2, 1.0, 0))
    with pytest.raises(InputError, match="no place"):
        convert(read_lora(path), BASE, tmp_path / "b.safetensors", "native")
    assert not (tmp_path / "b.safetensors").exists()


def test_merge_is_exact(tmp_path: Path) -> None:
    one = _sd_lora(tmp_path / "one.safetensors", seed=0, alpha=0.5)
    two = _sd_lora(tmp_path / "two.safetensors", seed=20, alpha=3.0)
    difference = {
        "lora_unet_conv_norm_out.diff": random(8),
        "lora_unet_down_blocks_0_attentions_0_proj_in.diff_b": random(8),
    }
    three = _save(tmp_path / "three.safetensors", difference)
    parts = [read_part(f"{one}:0.8"), read_part(f"{two}:-0.4"), read_part(str(three))]
    merge(parts, BASE, tmp_path / "out.safetensors")
    expected = deltas(one, BASE, 0.8)
    for weight, delta in (*deltas(two, BASE, -0.4).items(), *deltas(three, BASE).items()):
        expected[weight] = expected.get(weight, torch.zeros(())) + delta
    assert_same(deltas(tmp_path / "out.safetensors", BASE), expected)


def test_merge_to_a_rank_keeps_what_a_singular_value_decomposition_keeps(tmp_path: Path) -> None:
    one, two = (_sd_lora(tmp_path / f"{n}.safetensors", seed=n) for n in (1, 30))
    report = merge([read_part(str(one)), read_part(str(two))], BASE, tmp_path / "out.safetensors", rank=2)
    assert "% of" in report
    weight = "input_blocks.1.0.in_layers.2.weight"
    whole = (deltas(one, BASE)[weight] + deltas(two, BASE)[weight]).flatten(1)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    found = deltas(tmp_path / "out.safetensors", BASE)[weight].flatten(1)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)


CONV = "input_blocks.1.0.in_layers.2.weight"
CONV_NAME = "lora_unet_down_blocks_0_resnets_0_conv1"


def _trained(path: Path, algorithm: str, seed: int) -> Path:
    """A LyCORIS module of that algorithm for the convolution, its factors drawn again by `seed`."""
    tensors = {
        f"{CONV_NAME}.{key}": value if value.dim() == 0 else random(*value.shape, seed=seed + number)
        for number, (key, value) in enumerate(oracles.trained(algorithm, (8, 4, 3, 3)).tensors.items())
    }
    return _save(path, tensors)


def _summed(paths: Mapping[Path, float]) -> dict[str, Tensor]:
    summed: dict[str, Tensor] = {}
    for path, strength in paths.items():
        for weight, delta in deltas(path, BASE, strength).items():
            summed[weight] = summed.get(weight, torch.zeros(())) + delta
    return summed


def test_merging_tucker_cores_puts_them_on_a_diagonal(tmp_path: Path) -> None:
    paths = {
        _trained(tmp_path / "one.safetensors", "tucker", 1): 0.8,
        _trained(tmp_path / "two.safetensors", "tucker", 50): -0.4,
    }
    out = tmp_path / "out.safetensors"
    report = merge([read_part(f"{path}:{strength}") for path, strength in paths.items()], BASE, out)
    assert "exact; 1 as factors of rank 8" in report
    assert_same(deltas(out, BASE), _summed(paths))
    written, first = load_file(out), load_file(tmp_path / "one.safetensors")
    core = written[f"{CONV_NAME}.lora_mid.weight"]
    assert core.shape == (8, 8, 3, 3)
    assert torch.equal(core[:4, :4], first[f"{CONV_NAME}.lora_mid.weight"])
    assert not core[:4, 4:].any() and not core[4:, :4].any()
    assert torch.equal(written[f"{CONV_NAME}.lora_down.weight"][:4], first[f"{CONV_NAME}.lora_down.weight"])


@pytest.mark.parametrize(
    "algorithms",
    [
        ("tucker", "lora"), ("loha", "loha"), ("loha-tucker", "tucker"), ("lokr-low", "lora"),
        ("lokr-whole", "loha"), ("lokr-both-low", "lokr-tucker"), ("full", "tucker"),
    ],
    ids=" and ".join,
)  # fmt: skip
@pytest.mark.parametrize("energy", [None, 1.0])
def test_every_algebra_that_can_be_merged_is(
    algorithms: tuple[str, str], energy: float | None, tmp_path: Path
) -> None:
    paths = {
        _trained(tmp_path / f"{number}.safetensors", algorithm, 40 * number): 0.7 - number
        for number, algorithm in enumerate(algorithms)
    }
    out = tmp_path / "out.safetensors"
    parts = [read_part(f"{path}:{strength}") for path, strength in paths.items()]
    report = merge(parts, BASE, out, energy=energy)
    assert ("exact" in report) == (energy is None)
    assert ("100.0000% of" in report) == (energy is not None)
    assert_same(deltas(out, BASE), _summed(paths), tolerance=1e-5 if energy is None else 1e-3)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("loha", (64, 48)), ("loha", (64, 16, 3, 3)), ("loha-tucker", (64, 16, 3, 3)), ("lokr-low", (128, 128)),
     ("lokr-both-low", (128, 128)), ("lokr-tucker", (128, 64, 3, 3))],
)  # fmt: skip
def test_products_become_factors_where_those_are_smaller(kind: str, shape: tuple[int, ...]) -> None:
    oracle = oracles.trained(kind, shape)
    tensors = {name: tensor.float() for name, tensor in oracle.tensors.items()}
    form = registry().algebras[kind.split("-")[0]].factored(tensors, shape)
    assert form is not None
    gamma = 0.5 if kind != "lokr-both-low" else 1.0
    expected = oracle.change(1.0)
    atol = 1e-5 * float(expected.abs().max()) + 4e-7 * float(oracle.weight.abs().max())
    torch.testing.assert_close(form.scaled(gamma).whole(shape), expected, rtol=1e-5, atol=atol)


def test_merge_drops_nothing_silently(tmp_path: Path) -> None:
    good = _sd_lora(tmp_path / "good.safetensors")
    strange = load_file(good) | {"what.is.this": random(1)}
    with pytest.raises(InputError, match=r"what\.is\.this"):
        merge([read_part(str(_save(tmp_path / "a.safetensors", strange)))], BASE, tmp_path / "o.safetensors")
    broken = load_file(good)
    broken["lora_unet_down_blocks_0_resnets_0_conv1.alpha"] = torch.tensor(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        merge([read_part(str(_save(tmp_path / "b.safetensors", broken)))], BASE, tmp_path / "o.safetensors")
    without_clip: dict[ComponentName, Component] = {"model": SD}
    with pytest.raises(InputError, match="lora_te_"):
        merge([read_part(str(good))], without_clip, tmp_path / "o.safetensors")
    with pytest.raises(InputError, match="no strength"):
        read_part(f"{good}:1.2.3")
    assert not (tmp_path / "o.safetensors").exists()


def test_merge_keeps_bundled_embeddings(tmp_path: Path) -> None:
    vectors = {"bundle_emb.word.clip_l": random(2, 6)}
    one = _save(tmp_path / "one.safetensors", load_file(_sd_lora(tmp_path / "a.safetensors")) | vectors)
    two = _sd_lora(tmp_path / "two.safetensors", seed=9)
    merge([read_part(str(one)), read_part(str(two))], BASE, tmp_path / "out.safetensors")
    assert torch.equal(
        load_file(tmp_path / "out.safetensors")["bundle_emb.word.clip_l"], vectors.popitem()[1]
    )
    other = load_file(two) | {"bundle_emb.word.clip_l": random(2, 6, seed=5)}
    with pytest.raises(InputError, match="bundles"):
        parts = [read_part(str(one)), read_part(str(_save(tmp_path / "three.safetensors", other)))]
        merge(parts, BASE, tmp_path / "out.safetensors")


def test_merge_refuses_what_depends_on_the_weight(tmp_path: Path) -> None:
    oracle = oracles.trained("dora-output", (12, 6))
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    path = _save(
        tmp_path / "a.safetensors", {f"{name}.{key}": value for key, value in oracle.tensors.items()}
    )
    with pytest.raises(InputError, match="change with the weight"):
        merge([read_part(str(path)), read_part(str(path))], BASE, tmp_path / "b.safetensors")


def test_resizing_to_full_energy_changes_nothing(tmp_path: Path) -> None:
    original = _sd_lora(tmp_path / "a.safetensors", alpha=0.7)
    resize(read_lora(original), tmp_path / "b.safetensors", energy=1.0, precision="fp32")
    assert_same(deltas(tmp_path / "b.safetensors", BASE), deltas(original, BASE), tolerance=1e-4)


def test_resizing_to_a_rank(tmp_path: Path) -> None:
    original = _sd_lora(tmp_path / "a.safetensors")
    resize(read_lora(original), tmp_path / "b.safetensors", rank=1, precision="fp32")
    weight = "input_blocks.1.1.proj_in.weight"
    left, values, right = torch.linalg.svd(deltas(original, BASE)[weight].flatten(1))
    best = values[0] * left[:, :1] @ right[:1]
    found = deltas(tmp_path / "b.safetensors", BASE)[weight].flatten(1)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="energy"):
        resize(read_lora(original), tmp_path / "c.safetensors", energy=1.5)


def test_resizing_leaves_a_core_as_it_is(tmp_path: Path) -> None:
    core = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = _pair("lora_unet_down_blocks_0_attentions_0_proj_in", 8, (8, 1, 1), 2, 1.0, 0)
    shapes = {"up": (8, 3, 1, 1), "down": (2, 4, 1, 1), "mid": (3, 2, 3, 3)}
    tucker = {f"{core}.lora_{name}.weight": random(*shape) for name, shape in shapes.items()}
    original = _save(tmp_path / "a.safetensors", tensors | tucker)
    said = resize(read_lora(original), tmp_path / "b.safetensors", rank=1)
    written = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tucker.items())
    assert said.endswith("1 modules of other algebras left as they are")


def test_resizing_keeps_the_scale_of_pefts_config_and_what_it_does_not_know(tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.proj_in"
    tensors = {f"{name}.lora_A.weight": random(4, 8, 1, 1), f"{name}.lora_B.weight": random(8, 4, 1, 1)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 12})}
    original = _save(tmp_path / "a.safetensors", {**tensors, "what.is.this": random(1)}, metadata)
    resize(read_lora(original), tmp_path / "b.safetensors", energy=1.0, precision="fp32")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["what.is.this"], random(1))
    shapes = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "lora_B.bias": (8,)}
    biased = {f"{MODULE}.{key}": random(*shape) for key, shape in shapes.items()}
    original = _save(tmp_path / "c.safetensors", biased, SCALED)
    resize(read_lora(original), tmp_path / "d.safetensors", energy=1.0, precision="fp32")
    found = deltas(tmp_path / "d.safetensors", SQUARE)
    assert_same(found, deltas(original, SQUARE), tolerance=1e-4)
    only = {f"{MODULE}.diff": random(8, 8)}
    with pytest.raises(InputError, match="no plain LoRA"):
        resize(read_lora(_save(tmp_path / "e.safetensors", only)), tmp_path / "f.safetensors", rank=1)
    base: dict[ComponentName, Component] = {"model": SD}
    plain = _save(tmp_path / "plain.safetensors", tensors)
    tripled = {weight: 3 * delta for weight, delta in deltas(plain, base).items()}
    resized = load_lora(read_lora(tmp_path / "b.safetensors"), base).model.patches()
    found = {weight: patches[0].apply(torch.zeros(8, 8, 1, 1), 1.0) for weight, patches in resized.items()}
    assert_same(found, tripled, tolerance=1e-4)


def test_extraction_returns_a_known_difference(tmp_path: Path) -> None:
    lora = _sd_lora(tmp_path / "a.safetensors")
    before = {
        weight: random(*shape, seed=9) for part in BASE.values() for weight, shape in part.shapes.items()
    }
    change = deltas(lora, BASE)
    change["input_blocks.1.1.proj_in.bias"] = random(8)
    after = {weight: value + change.get(weight, torch.zeros(())) for weight, value in before.items()}
    tuned = CheckpointWeights(BASE, lambda _, weight: after[weight])
    original = CheckpointWeights(BASE, lambda _, weight: before[weight])
    report = extract(tuned, original, tmp_path / "b.safetensors", rank=3, precision="fp32")
    assert report.startswith("4 weights differ")
    assert_same(deltas(tmp_path / "b.safetensors", BASE), change, tolerance=1e-3)
    with pytest.raises(InputError, match="same weights"):
        extract(original, original, tmp_path / "c.safetensors")


def test_extraction_says_what_only_one_of_the_checkpoints_has(tmp_path: Path) -> None:
    tuned, original = _checkpoints(1.0)
    less = CheckpointWeights({"model": replace(SD, shapes=dict(list(SD.shapes.items())[:-1]))}, original.read)
    last = list(SD.shapes)[-1]
    assert f"left out is what only the tuned checkpoint has ({last})" in extract(
        tuned, less, tmp_path / "a.safetensors"
    )
    with pytest.raises(InputError, match=rf"{last} is \[.*\] in the original and missing in the tuned"):
        extract(less, tuned, tmp_path / "b.safetensors")


def test_large_matrices_are_reduced_without_clamping() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(1200, 8, generator=generator), torch.randn(8, 1100, generator=generator)
    up[0] *= 1000  # the outlier that a quantile clamp would cut
    form = reduce_matrix(up @ down, 8, None)
    assert form.kept / form.total > 1 - 1e-6
    error = (form.up @ form.down - up @ down).norm() / (up @ down).norm()
    assert float(error) < 1e-4


def test_written_files_state_their_own_hash(tmp_path: Path) -> None:
    from loraloom.lora.hashes import embedded_hash_note, hashes_of

    resize(read_lora(_sd_lora(tmp_path / "a.safetensors")), tmp_path / "b.safetensors", rank=1)
    file = read_lora(tmp_path / "b.safetensors")
    assert file.metadata["sshs_model_hash"] == hashes_of(file.path).tensors
    assert embedded_hash_note(file.metadata, hashes_of(file.path)) is None


def _plain(folder: Path, *, broken: float | None = None) -> Path:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    up = random(8, 2, 1, 1)
    if broken is not None:
        up[3, 1] = broken
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": random(2, 8, 1, 1)}
    return _save(folder / "plain.safetensors", tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_module(value: float, tmp_path: Path) -> None:
    file = read_lora(_plain(tmp_path, broken=value))
    with pytest.raises(InputError, match="proj_in holds NaN or infinity"):
        resize(file, tmp_path / "out.safetensors", rank=1)
    with pytest.raises(InputError, match="proj_in holds NaN or infinity"):
        merge([read_part(str(file.path))], BASE, tmp_path / "out.safetensors")
    tuned, original = _checkpoints(value)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        extract(tuned, original, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def _checkpoints(value: float) -> tuple[CheckpointWeights, CheckpointWeights]:
    broken = torch.zeros(8, 8, 1, 1)
    broken[0, 0] = value
    tensors = {name: torch.zeros(shape) for name, shape in SD.shapes.items()}
    components: dict[ComponentName, Component] = {"model": SD}
    tuned = tensors | {"input_blocks.1.1.proj_in.weight": broken}
    return (
        CheckpointWeights(components, lambda _, name: tuned[name]),
        CheckpointWeights(components, lambda _, name: tensors[name]),
    )


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    path = _plain(tmp_path)
    before = path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    for out in (path, tmp_path / "link.safetensors", tmp_path / "x" / ".." / "plain.safetensors"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="one of the files to read"):
            merge([read_part(str(path)), read_part(f"{path}:0.5")], BASE, out)
        with pytest.raises(InputError, match="one of the files to read"):
            resize(read_lora(path), out, rank=1)
        with pytest.raises(InputError, match="one of the files to read"):
            convert(read_lora(path), BASE, out, "kohya")
    assert path.read_bytes() == before


def test_the_umask_decides_the_mode(tmp_path: Path) -> None:
    path, out = _plain(tmp_path), tmp_path / "out.safetensors"
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            resize(read_lora(path), out, rank=1)
        finally:
            os.umask(before)
        assert out.stat().st_mode & 0o777 == mode
        out.unlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plain.safetensors"]


@pytest.mark.parametrize(
    ("up", "down"), [((), (2, 4)), ((4, 2), ()), ((4, 3), (2, 4)), ((1, 2, 2, 2), (0, 2)), ((4,), (4,))]
)
def test_factors_that_make_no_product_are_not_resized(
    up: tuple[int, ...], down: tuple[int, ...], tmp_path: Path
) -> None:
    path = _save(
        tmp_path / "a.safetensors",
        {"lora_unet_x.lora_up.weight": torch.ones(up), "lora_unet_x.lora_down.weight": torch.ones(down)},
    )
    with pytest.raises(ModelFileError, match="lora_unet_x: "):
        resize(read_lora(path), tmp_path / "out.safetensors", rank=1)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_whole_differences_are_added_in_whatever_type_they_are_stored(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    stored = torch.full((8, 8, 1, 1), 0.5).to(dtype)
    path = _save(tmp_path / "a.safetensors", {"lora_unet_down_blocks_0_attentions_0_proj_in.diff": stored})
    ((patch,),) = load_lora(read_lora(path), BASE).model.by_weight.values()
    assert patch.apply(torch.zeros(8, 8, 1, 1), 2.0).unique().tolist() == [1.0]
