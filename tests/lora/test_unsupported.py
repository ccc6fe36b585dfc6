"""Adapters of PEFT and LyCORIS, saved by their own programs: applied, or named in what is said of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraloom.errors import ModelFileError
from loraloom.lora.component import Component
from loraloom.lora.file import read_lora
from loraloom.lora.inspect import page_of
from loraloom.lora.load import load_lora
from loraloom.weights.patch import Target

from .test_load import apply, random

SHAPE = (16, 16)
COMPONENT = Component("sd15", {"a.weight": SHAPE}, {"mid.to_q": Target("a.weight")})


class Base(nn.Module):
    """A model of one linear layer, called as in a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = nn.Module()
        self.mid.to_q = nn.Linear(*SHAPE, bias=False)


def _saved(folder: Path, config: Any, spread: float = 0.05) -> tuple[Path, nn.Module, Tensor]:
    """PEFT's directory of an adapter with random values, the model, and the weight below the adapter."""
    from peft import PeftModel, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model: Any = get_peft_model(Base(), config)  # pyright: ignore[reportArgumentType]
        weight = model.base_model.model.mid.to_q.get_base_layer().weight.detach().clone()
        for value in model.parameters():
            if value.requires_grad:
                value.data += torch.randn(value.shape) * spread
        assert isinstance(model, PeftModel)
        model.save_pretrained(str(folder))
    return folder, model, weight


def _config(name: str, **options: Any) -> Any:
    import peft

    return getattr(peft, name)(target_modules=["to_q"], **options)


APPLIED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 2, "use_rslora": True}),
    "DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 2, "use_dora": True}),
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 2}),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 1}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "OFT": ("OFTConfig", {"oft_block_size": 4}),
    "OFT, exact": ("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "OFT, three terms": ("OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 3}),
    "OFT, seven terms": ("OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 7}),
    "OFT, one block for all": ("OFTConfig", {"oft_block_size": 4, "block_share": True}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
}


@pytest.mark.parametrize("case", APPLIED)
def test_peft_directories_are_applied_as_peft_merges_them(case: str, tmp_path: Path) -> None:
    name, options = APPLIED[case]
    folder, model, weight = _saved(tmp_path, _config(name, **options), 0.2)
    lora = load_lora(read_lora(folder), {"model": COMPONENT}, strict=True)
    merged: Any = model.merge_and_unload()  # pyright: ignore[reportCallIssue]
    expected = merged.mid.to_q.weight.detach()
    assert float((expected - weight).abs().max()) > 1e-3
    torch.testing.assert_close(apply(lora, "a.weight", weight.clone()), expected, rtol=1e-5, atol=1e-6)


NAMED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "VeRA": ("VeraConfig", {"r": 4}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "target_r": 4, "total_step": 10}),
    "RandLoRA": ("RandLoraConfig", {"r": 4}),
    "VB-LoRA": ("VBLoRAConfig", {"r": 4, "num_vectors": 8, "vector_length": 4, "topk": 2}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 8}),
    "HRA": ("HRAConfig", {"r": 4}),
    "C3A": ("C3AConfig", {"block_size": 4}),
    "MiSS": ("MissConfig", {"r": 4}),
    "SHiRA": ("ShiraConfig", {"r": 4}),
    "RoAd": ("RoadConfig", {"group_size": 8}),
    "GraLoRA": ("GraloraConfig", {"r": 4}),
    "DeLoRA": ("DeloraConfig", {"r": 4}),
    "HiRA": ("HiraConfig", {"r": 4}),
    "GLoRA as PEFT writes it": ("GloraConfig", {"r": 4}),
}


@pytest.mark.parametrize("kind", NAMED)
def test_adapters_that_are_not_applied_are_named(kind: str, tmp_path: Path) -> None:
    name, options = NAMED[kind]
    folder, _, _ = _saved(tmp_path, _config(name, **options))
    with pytest.raises(ModelFileError, match=rf"tensors are {kind}, which is not applied here"):
        read_lora(folder)


def test_beside_a_lora_they_are_named_in_receipt_and_page(tmp_path: Path) -> None:
    folder, _, _ = _saved(tmp_path, _config("AdaLoraConfig", init_r=4, target_r=4, total_step=10))
    other = {
        key.replace("to_q", "to_k"): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    plain = {"unet.mid.to_q.lora_A.weight": random(2, 16), "unet.mid.to_q.lora_B.weight": random(16, 2)}
    save_file(plain | other | {"what.is.this": random(1)}, tmp_path / "mixed.safetensors")
    file = read_lora(tmp_path / "mixed.safetensors")
    receipt = load_lora(file, {"model": COMPONENT}).receipt
    assert receipt.unsupported == {"AdaLoRA": 3}
    assert set(receipt.unknown) == {*other, "what.is.this"}
    assert any("3 tensors are AdaLoRA" in said and "1 tensors are of no" in said for said in receipt.warnings)
    assert any("AdaLoRA" in note for note in page_of(file).notes)


def test_t_lora_is_named(tmp_path: Path) -> None:
    from lycoris.modules.tlora import TLoraModule

    module = TLoraModule("module", nn.Linear(*SHAPE), 1.0, 4, 2.0)
    tensors = {f"lycoris_mid_to_q.{name}": value.contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="T-LoRA"):
        read_lora(tmp_path / "a.safetensors")


def test_a_start_that_changes_the_base_is_said(tmp_path: Path) -> None:
    folder, _, _ = _saved(tmp_path, _config("LoraConfig", r=4, init_lora_weights="pissa_niter_4"))
    receipt = load_lora(read_lora(folder), {"model": COMPONENT}).receipt
    assert any("init_lora_weights='pissa_niter_4'" in warning for warning in receipt.warnings)
    plain, _, _ = _saved(tmp_path / "plain", _config("LoraConfig", r=4, init_lora_weights="gaussian"))
    assert load_lora(read_lora(plain), {"model": COMPONENT}).receipt.warnings == ()
