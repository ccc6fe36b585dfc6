"""Loading: PEFT's configs, fused and swapped layers, control LoRAs, bundles, receipts and refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import InputError, ModelFileError
from loraloom.lora.component import Component, ComponentName
from loraloom.lora.file import read_lora
from loraloom.lora.load import LoadedLora, load_lora
from loraloom.weights.patch import Target

from . import tables

H = 8
FLUX = Component(
    "flux",
    {
        "img_in.weight": (H, 4),
        "img_in.bias": (H,),
        "double_blocks.0.img_attn.qkv.weight": (3 * H, H),
        "double_blocks.0.img_attn.qkv.bias": (3 * H,),
        "double_blocks.0.img_attn.norm.key_norm.scale": (H,),
        "double_blocks.0.txt_attn.proj.weight": (H, H),
        "single_blocks.0.linear1.weight": (7 * H, H),
        "single_blocks.0.linear2.weight": (H, 5 * H),
        "final_layer.adaLN_modulation.1.weight": (2 * H, H),
        "final_layer.adaLN_modulation.1.bias": (2 * H,),
    },
    {
        "x_embedder": Target("img_in.weight"),
        "transformer_blocks.0.attn.to_q": Target("double_blocks.0.img_attn.qkv.weight", (0, H)),
        "transformer_blocks.0.attn.to_k": Target("double_blocks.0.img_attn.qkv.weight", (H, 2 * H)),
        "transformer_blocks.0.attn.to_v": Target("double_blocks.0.img_attn.qkv.weight", (2 * H, 3 * H)),
        "norm_out.linear": Target("final_layer.adaLN_modulation.1.weight", None, True),
        "single_blocks.0.linear1_qkv": Target("single_blocks.0.linear1.weight", (0, 3 * H)),
    },
)
"""A narrow Flux: everything that its fused layers need."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def load(
    folder: Path, tensors: Mapping[str, Tensor], components: Mapping[ComponentName, Component] | None = None,
    metadata: dict[str, str] | None = None, **options: Any,
) -> LoadedLora:  # fmt: skip
    path = folder / "lora.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return load_lora(read_lora(path), components or {"model": FLUX}, **options)


def apply(lora: LoadedLora, weight: str, base: Tensor, strength: float = 1.0) -> Tensor:
    """The weight with all patches of a LoRA, as residency applies them."""
    changed = base.clone()
    for patch in lora.model.patches()[weight]:
        if patch.rows is None:
            changed = patch.apply(changed, strength)
        else:
            rows = slice(*patch.rows)
            changed[rows] = patch.apply(changed[rows].clone(), strength)
    return changed


def test_diffusers_parts_change_their_rows_of_a_fused_weight(tmp_path: Path) -> None:
    tensors = {
        f"transformer.transformer_blocks.0.attn.to_{x}.lora_{side}.weight": random(*shape, seed=ord(x))
        for x in "qkv"
        for side, shape in (("A", (2, H)), ("B", (H, 2)))
    }
    lora = load(tmp_path, tensors)
    expected = torch.cat(
        [
            tensors[f"transformer.transformer_blocks.0.attn.to_{x}.lora_B.weight"]
            @ tensors[f"transformer.transformer_blocks.0.attn.to_{x}.lora_A.weight"]
            for x in "qkv"
        ]
    )
    changed = apply(lora, "double_blocks.0.img_attn.qkv.weight", torch.zeros(3 * H, H), 0.5)
    torch.testing.assert_close(changed, 0.5 * expected)
    assert lora.receipt.matched == 3
    assert lora.receipt.components[0].weights == 1


def test_exchanged_halves_are_undone(tmp_path: Path) -> None:
    up, down = random(2 * H, 2), random(2, H)
    bias = random(2 * H)
    lora = load(
        tmp_path,
        {
            "transformer.norm_out.linear.lora_B.weight": up,
            "transformer.norm_out.linear.lora_A.weight": down,
            "transformer.norm_out.linear.lora_B.bias": bias,
        },
    )
    base = random(2 * H, H, seed=9)
    scale, shift = (up @ down).chunk(2)
    expected = base + torch.cat([shift, scale])
    torch.testing.assert_close(apply(lora, "final_layer.adaLN_modulation.1.weight", base), expected)
    factors = lora.model.patches()["final_layer.adaLN_modulation.1.weight"][0].factors()
    assert factors is not None
    torch.testing.assert_close(base + factors.up @ factors.down, expected)
    changed = apply(lora, "final_layer.adaLN_modulation.1.bias", torch.zeros(2 * H))
    torch.testing.assert_close(changed, bias.roll(H))


def test_numbered_parts_fill_a_fused_weight_in_order(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_up.{i}.weight": random(H, 2, seed=i) for i in range(3)}
    tensors |= {f"{name}.lora_down.{i}.weight": random(2, H, seed=i) for i in range(3)}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    lora = load(tmp_path, tensors)
    expected = torch.cat(
        [tensors[f"{name}.lora_up.{i}.weight"] @ tensors[f"{name}.lora_down.{i}.weight"] for i in range(3)]
    )
    changed = apply(lora, "double_blocks.0.img_attn.qkv.weight", torch.zeros(3 * H, H))
    torch.testing.assert_close(changed, 0.5 * expected)
    assert lora.receipt.complete


def test_numbered_rotations_turn_their_rows(tmp_path: Path) -> None:
    """kohya's OFT for Flux: one set of blocks for each of query, key and value."""
    name = "oft_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.oft_blocks.{i}": 0.1 * random(2, 4, 4, seed=i) for i in range(3)}
    tensors[f"{name}.alpha"] = torch.tensor(0.0)
    lora = load(tmp_path, tensors)
    base = random(3 * H, H, seed=9)
    changed = apply(lora, "double_blocks.0.img_attn.qkv.weight", base)
    for index in range(3):
        rows = base[index * H : (index + 1) * H]
        whole = Component("flux", {"a.weight": (H, H)})
        single = {"diffusion_model.a.oft_blocks": tensors[f"{name}.oft_blocks.{index}"]}
        alone = load(tmp_path, single, {"model": whole})
        torch.testing.assert_close(changed[index * H : (index + 1) * H], apply(alone, "a.weight", rows))
    assert lora.receipt.complete


def test_xlabs_processors(tmp_path: Path) -> None:
    tensors = {
        "double_blocks.0.processor.qkv_lora1.down.weight": random(2, H),
        "double_blocks.0.processor.qkv_lora1.up.weight": random(3 * H, 2),
        "double_blocks.0.processor.proj_lora2.down.weight": random(2, H, seed=1),
        "double_blocks.0.processor.proj_lora2.up.weight": random(H, 2, seed=1),
        "single_blocks.0.processor.qkv_lora.down.weight": random(2, H, seed=2),
        "single_blocks.0.processor.qkv_lora.up.weight": random(3 * H, 2, seed=2),
        "single_blocks.0.processor.proj_lora.down.weight": random(2, 5 * H, seed=3),
        "single_blocks.0.processor.proj_lora.up.weight": random(H, 2, seed=3),
    }
    lora = load(tmp_path, tensors)
    assert lora.receipt.complete
    assert lora.receipt.trainer == "XLabs"
    patches = lora.model.patches()
    assert set(patches) == {
        "double_blocks.0.img_attn.qkv.weight", "double_blocks.0.txt_attn.proj.weight",
        "single_blocks.0.linear1.weight", "single_blocks.0.linear2.weight",
    }  # fmt: skip
    assert patches["single_blocks.0.linear1.weight"][0].rows == (0, 3 * H)


def test_control_lora_widens_the_input_and_sets_norms(tmp_path: Path) -> None:
    up, down, bias, scale = random(H, 2), random(2, 6), random(H), random(H, seed=4)
    lora = load(
        tmp_path,
        {
            "img_in.lora_A.weight": down,
            "img_in.lora_B.weight": up,
            "img_in.lora_B.bias": bias,
            "double_blocks.0.img_attn.norm.key_norm.scale": scale,
        },
    )
    base = random(H, 4, seed=5)
    expected = torch.cat([base, torch.zeros(H, 2)], 1) + 0.5 * up @ down
    torch.testing.assert_close(apply(lora, "img_in.weight", base, 0.5), expected)
    torch.testing.assert_close(apply(lora, "img_in.bias", torch.zeros(H), 0.5), 0.5 * bias)
    changed = apply(lora, "double_blocks.0.img_attn.norm.key_norm.scale", random(H, seed=6), 0.1)
    torch.testing.assert_close(changed, scale)


def test_reshape_weight_widens_without_a_control_file(tmp_path: Path) -> None:
    up, down = random(H, 2), random(2, 6)
    lora = load(
        tmp_path,
        {
            "diffusion_model.img_in.lora_down.weight": down,
            "diffusion_model.img_in.lora_up.weight": up,
            "diffusion_model.img_in.reshape_weight": torch.tensor([H, 6]),
        },
    )
    base = random(H, 4, seed=5)
    assert tuple(apply(lora, "img_in.weight", base).shape) == (H, 6)


def test_norms_and_biases(tmp_path: Path) -> None:
    shapes = {"out.0.weight": (H,), "out.0.bias": (H,), "out.2.weight": (4, H, 3, 3), "out.2.bias": (4,)}
    component = Component(
        "sd15", shapes, {"conv_norm_out": Target("out.0.weight"), "conv_out": Target("out.2.weight")}
    )
    tensors = {
        "lora_unet_conv_norm_out.w_norm": random(H),
        "lora_unet_conv_norm_out.b_norm": random(H, seed=1),
        "lora_unet_conv_out.diff": random(4, H, 3, 3),
        "lora_unet_conv_out.diff_b": random(4),
        "lora_unet_out_2.bias_indices": torch.tensor([[1, 3]]),
        "lora_unet_out_2.bias_values": torch.tensor([0.5, -2.0]),
        "lora_unet_out_2.bias_size": torch.tensor([4]),
    }
    lora = load(tmp_path, tensors, {"model": component})
    assert lora.receipt.complete
    for weight, key in (("out.0.weight", "conv_norm_out.w_norm"), ("out.0.bias", "conv_norm_out.b_norm"),
                        ("out.2.weight", "conv_out.diff")):  # fmt: skip
        changed = apply(lora, weight, torch.zeros(shapes[weight]), 0.25)
        torch.testing.assert_close(changed, 0.25 * tensors["lora_unet_" + key])
    dense = torch.tensor([0.0, 0.5, 0.0, -2.0])
    changed = apply(lora, "out.2.bias", torch.zeros(4), 2.0)
    torch.testing.assert_close(changed, 2 * (tensors["lora_unet_conv_out.diff_b"] + dense))


def test_old_glora_files_have_their_factors_the_other_way_round(tmp_path: Path) -> None:
    component = Component("sd15", {"a.weight": (6, 5)})
    tensors = {
        "diffusion_model.a.a1.weight": random(2, 5),
        "diffusion_model.a.a2.weight": random(5, 2),
        "diffusion_model.a.b1.weight": random(2, 5, seed=1),
        "diffusion_model.a.b2.weight": random(6, 2, seed=1),
        "diffusion_model.a.alpha": torch.tensor(1.0),
    }
    base = random(6, 5, seed=2)
    a1, a2, b1, b2, _ = tensors.values()
    lora = load(tmp_path, tensors, {"model": component})
    expected = base + 0.7 * 0.5 * (b2 @ b1 + (base @ a2) @ a1)
    torch.testing.assert_close(apply(lora, "a.weight", base, 0.7), expected)


def test_text_encoders_are_ignored_by_design_without_clip(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_img_in.lora_down.weight": random(2, 4),
        "lora_unet_img_in.lora_up.weight": random(H, 2),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": random(2, 768),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": random(3072, 2),
    }
    receipt = load(tmp_path, tensors).receipt
    assert receipt.complete
    assert (receipt.matched, receipt.total) == (1, 1)
    assert len(receipt.ignored) == 1
    assert "text encoders" in receipt.ignored[0].reason
    assert receipt.warnings == ()


def test_bundled_embeddings_come_along(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_img_in.lora_down.weight": random(2, 4),
        "lora_unet_img_in.lora_up.weight": random(H, 2),
        "bundle_emb.my.token.clip_l": random(3, 768),
        "bundle_emb.my.token.clip_g": random(3, 1280),
    }
    lora = load(tmp_path, tensors)
    assert set(lora.embeddings) == {"my.token"}
    assert set(lora.embeddings["my.token"]) == {"clip_l", "clip_g"}
    assert lora.receipt.complete
    assert "textual inversion" in lora.receipt.ignored[0].reason


def test_the_wrong_base_is_named(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": random(2, H), f"{name}.lora_up.weight": random(3 * H, 2)}
    with pytest.raises(InputError, match=r"this is a Flux\.1 LoRA.*the checkpoint is Stable Diffusion 1\.5"):
        load(tmp_path, tensors, tables.components("sd15"), {"ss_sd_model_name": "flux1-dev.sft"})


def test_partial_is_a_warning_and_strict_an_error(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_img_in.lora_down.weight": random(2, 4),
        "lora_unet_img_in.lora_up.weight": random(H, 2),
        "lora_unet_img_out.lora_down.weight": random(2, 4),
        "lora_unet_img_out.lora_up.weight": random(H, 2),
    }
    receipt = load(tmp_path, tensors).receipt
    assert not receipt.complete
    assert receipt.unplaced == ("lora_unet_img_out",)
    assert "1 of 2" in receipt.warnings[-1]
    with pytest.raises(InputError, match="lora_unet_img_out"):
        load(tmp_path, tensors, strict=True)


def test_parts_that_fit_another_family_by_chance_name_the_cause(tmp_path: Path) -> None:
    """A LoRA of Stable Diffusion 1.5 on SDXL: projections fit, what reads the text does not."""
    path = "down_blocks.1.attentions.0."
    sdxl = Component(
        "sdxl",
        {"in.weight": (8, 8), "k.weight": (8, 2048)},
        {
            path + "proj_in": Target("in.weight"),
            path + "transformer_blocks.0.attn2.to_k": Target("k.weight"),
        },
    )
    tensors: dict[str, Tensor] = {}
    for name, width in (("proj_in", 8), ("transformer_blocks.0.attn2.to_k", 768)):
        module = "lora_unet_" + (path + name).replace(".", "_")
        tensors |= {f"{module}.lora_down.weight": random(2, width), f"{module}.lora_up.weight": random(8, 2)}
    (warning,) = load(tmp_path, tensors, {"model": sdxl}).receipt.warnings
    assert warning.startswith(
        "this is a Stable Diffusion 1.5 LoRA and the model is Stable Diffusion XL: only 1"
    )


def test_receipt_is_plain_json(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_img_in.lora_down.weight": random(2, 4),
        "lora_unet_img_in.lora_up.weight": random(H, 2),
    }
    receipt = load(tmp_path, tensors).receipt.at(0.8, None)
    plain = json.loads(json.dumps(receipt.to_json()))
    assert plain["matched"] == plain["total"] == 1
    assert plain["strength_model"] == 0.8
    assert plain["components"] == [{"component": "model", "matched": 1, "total": 1, "weights": 1}]
    assert "1/1" in receipt.summary()


def test_text_encoder_lora_for_a_model_only_loader_says_so(tmp_path: Path) -> None:
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{name}.lora_down.weight": random(2, 768), f"{name}.lora_up.weight": random(3072, 2)}
    with pytest.raises(InputError, match="text encoders only"):
        load(tmp_path, tensors, {"model": tables.model("sd15")})


def test_signatures_tell_states_of_a_file_apart(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_img_in.lora_down.weight": random(2, 4),
        "lora_unet_img_in.lora_up.weight": random(H, 2),
    }
    first = load(tmp_path, tensors)
    again = load_lora(first.file, first.components)
    os.utime(first.file.path, ns=(1, 1))
    other = load_lora(read_lora(first.file.path), first.components)
    signatures = [lora.model.patches()["img_in.weight"][0].signature for lora in (first, again, other)]
    assert signatures[0] == signatures[1] != signatures[2]
    assert first.model.digest == again.model.digest != other.model.digest


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    torch.save({"lora_unet_x.lora_up.weight": random(2, 2)}, tmp_path / "lora.pt")
    with pytest.raises(ModelFileError, match="loraloom models convert"):
        read_lora(tmp_path / "lora.pt")
