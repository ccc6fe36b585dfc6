"""Scales from PEFT's configs and diffusers' metadata, and PEFT's own DoRA as oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.component import Component
from loraloom.lora.convert import convert
from loraloom.lora.file import read_lora
from loraloom.lora.inspect import page_of
from loraloom.lora.load import load_lora
from loraloom.weights.patch import Target

from .test_load import H, apply, load, random


def _peft_folder(folder: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "gamma"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 16, "lora_alpha": 8, "rank_pattern": {"to_out.0": 4}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_out.0": 2}}, 0.5),
    ],
)
def test_peft_config_gives_the_scale(config: dict[str, Any], gamma: float, tmp_path: Path) -> None:
    """The same file and config through PEFT itself."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear
    from torch import nn

    layer: Any = Linear(
        nn.Linear(5, 6, bias=False), "default", r=4, lora_alpha=8,
        config=LoraConfig(r=4, lora_alpha=8, use_rslora=bool(config.get("use_rslora"))),
    )  # fmt: skip
    layer.lora_B["default"].weight.data = random(6, 4)
    up, down = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
    path = "base_model.model.down_blocks.0.attn1.to_out.0"
    folder = _peft_folder(tmp_path, {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, config)
    component = Component("sd15", {"a.weight": (6, 5)}, {"down_blocks.0.attn1.to_out.0": Target("a.weight")})
    lora = load_lora(read_lora(folder), {"model": component})
    changed = apply(lora, "a.weight", torch.zeros(6, 5))
    torch.testing.assert_close(changed, gamma * up @ down)
    assert "PEFT config" in lora.receipt.alpha
    if not config.keys() & {"rank_pattern", "alpha_pattern"}:
        torch.testing.assert_close(changed, layer.get_delta_weight("default").detach())


def test_diffusers_metadata_gives_the_scale(tmp_path: Path) -> None:
    config = {"transformer.r": 2, "transformer.lora_alpha": 8.0, "transformer.use_rslora": True}
    tensors = {
        "transformer.x_embedder.lora_A.weight": random(2, 4),
        "transformer.x_embedder.lora_B.weight": random(H, 2),
    }
    lora = load(tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(config)})
    down, up = tensors.values()
    changed = apply(lora, "img_in.weight", torch.zeros(H, 4))
    torch.testing.assert_close(changed, 8 / math.sqrt(2) * up @ down)
    plain = load(tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(config)}, compat="comfyui")
    torch.testing.assert_close(apply(plain, "img_in.weight", torch.zeros(H, 4)), up @ down)


def test_what_comfyui_reads_nothing_of_is_an_error_that_says_so(tmp_path: Path) -> None:
    """PEFT's names of attention projections: ComfyUI v0.3.64 would draw the picture without them."""
    path = "unet.down_blocks.0.attentions.0.attn1.to_q"
    tensors = {f"{path}.lora_A.weight": random(2, 6), f"{path}.lora_B.weight": random(8, 2)}
    component = Component("sd15", {"a.weight": (8, 6)}, {path.removeprefix("unet."): Target("a.weight")})
    assert load(tmp_path, tensors, {"model": component}).receipt.complete
    with pytest.raises(
        InputError, match=r"for Stable Diffusion 1\.5, but ComfyUI v0\.3\.64 loads none of its 1"
    ):
        load(tmp_path, tensors, {"model": component}, compat="comfyui")
    flux = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{side}.weight": random(4, 4) for side in "AB"}
    with pytest.raises(InputError, match=r"this is a Flux\.1 LoRA, the checkpoint is Stable"):
        load(tmp_path, flux, {"model": component}, compat="comfyui")


def test_peft_dora_is_per_output_row(tmp_path: Path) -> None:
    """A square layer, on which a wrong axis would pass unseen; against PEFT's own merge."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear
    from torch import nn

    layer: Any = Linear(
        nn.Linear(6, 6, bias=False), "default", r=2, lora_alpha=2,
        config=LoraConfig(r=2, lora_alpha=2, use_dora=True),
    )  # fmt: skip
    base = layer.get_base_layer().weight.detach().clone()
    layer.lora_B["default"].weight.data = 0.3 * random(6, 2)
    magnitude = layer.lora_magnitude_vector["default"].weight
    magnitude.data = magnitude.data * (1 + 0.2 * random(6))
    path = "base_model.model.mid.to_q"
    tensors = {
        f"{path}.lora_A.weight": layer.lora_A["default"].weight.detach(),
        f"{path}.lora_B.weight": layer.lora_B["default"].weight.detach(),
        f"{path}.lora_magnitude_vector": magnitude.detach(),
    }
    layer.merge()
    component = Component("sd15", {"a.weight": (6, 6)}, {"mid.to_q": Target("a.weight")})
    lora = load(tmp_path, tensors, {"model": component})
    torch.testing.assert_close(apply(lora, "a.weight", base), layer.get_base_layer().weight.detach())


def _plain_pair() -> dict[str, Tensor]:
    name = "lora_unet_input_blocks_1_1_proj_in"
    return {f"{name}.lora_A.weight": random(6, 8), f"{name}.lora_B.weight": random(8, 6)}


@pytest.mark.parametrize(
    ("metadata", "gamma"),
    [
        ({"r": "6", "lora_alpha": "24"}, 4.0),
        ({"lora_alpha": "24.0"}, 4.0),
        ({"r": "6", "lora_alpha": "6", "use_rslora": "True"}, 6 / math.sqrt(6)),
        ({"lora_config": json.dumps({"r": 6, "lora_alpha": 12})}, 2.0),
        ({"r": "6", "lora_alpha": "much"}, 1.0),
        ({"ss_network_dim": "6", "ss_network_alpha": "24"}, 1.0),
        ({"rank": "6", "alpha": "24"}, 1.0),
    ],
)
def test_a_scale_that_stands_in_the_header_only(
    metadata: dict[str, str], gamma: float, tmp_path: Path
) -> None:
    """PEFT's settings are used; those that may be multiplied into the factors already are spoken of."""
    component = Component("sd15", {"input_blocks.1.1.proj_in.weight": (8, 8)})
    tensors = _plain_pair()
    lora = load(tmp_path, tensors, {"model": component}, metadata)
    down, up = tensors.values()
    changed = apply(lora, "input_blocks.1.1.proj_in.weight", torch.zeros(8, 8))
    torch.testing.assert_close(changed, gamma * up @ down)
    stated = next((key for key in ("ss_network_alpha", "alpha") if key in metadata), None)
    said = any(stated is not None and f"{stated} 24" in line for line in lora.receipt.warnings)
    assert said == (stated is not None)
    notes = page_of(read_lora(tmp_path / "lora.safetensors")).notes
    assert any("4 times the strength" in note for note in notes) == (stated is not None)


def test_a_scale_is_not_written_twice(tmp_path: Path) -> None:
    """Converting multiplies γ in or states it as alpha, and takes the header's settings away."""
    component = Component(
        "sd15",
        {"input_blocks.1.1.proj_in.weight": (8, 8)},
        {"down_blocks.0.attentions.0.proj_in": Target("input_blocks.1.1.proj_in.weight")},
    )
    metadata = {"r": "6", "lora_alpha": "24", "ss_network_alpha": "24"}
    before = load(tmp_path, _plain_pair(), {"model": component}, metadata)
    weight = "input_blocks.1.1.proj_in.weight"
    for dialect in ("diffusers", "kohya"):
        out = tmp_path / f"{dialect}.safetensors"
        convert(read_lora(tmp_path / "lora.safetensors"), {"model": component}, out, dialect)
        after = load_lora(read_lora(out), {"model": component})
        expected = apply(before, weight, torch.zeros(8, 8))
        torch.testing.assert_close(apply(after, weight, torch.zeros(8, 8)), expected)
        assert not after.receipt.warnings
