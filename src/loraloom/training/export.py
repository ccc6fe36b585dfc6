"""A trained adapter as LoRA files: kohya's and diffusers' names, with the metadata that readers look for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from blake3 import blake3
from safetensors.torch import save
from torch import Tensor

from loraloom.atomic_file import write_file
from loraloom.errors import InputError
from loraloom.training.adapters import Adapter, written
from loraloom.training.dataset import Example, tag_frequency
from loraloom.training.kind import kinds
from loraloom.training.settings import Settings

KOHYA = {"model": "lora_unet_", "clip_l": "lora_te_", "clip_l+": "lora_te1_", "clip_g": "lora_te2_"}
"""Prefixes of kohya's trainers; "clip_l+": where the model has a second encoder."""
DIFFUSERS = {
    "unet": "unet.",
    "transformer": "transformer.",
    "clip_l": "text_encoder.",
    "clip_g": "text_encoder_2.",
}
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1/lora",
    "sd20": "stable-diffusion-v2-768-v/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "flux": "flux-1-dev/lora",
}
BASE_VERSIONS = {"sd15": "sd_v1", "sd20": "sd_v2", "sdxl": "sdxl_base_v1-0", "flux": "flux1"}

Adapters = Mapping[str, Adapter]
"""By component: "model", "clip_l", "clip_g"."""


def kohya_tensors(adapters: Adapters, family: str) -> dict[str, Tensor]:
    """Tensors under kohya's names: "lora_unet_down_blocks_….lora_down.weight", with alphas.

    Flux.1 goes by the path of its diffusers module, "lora_transformer_…", as OneTrainer writes it: its own
    names fuse layers that are trained apart."""
    found: dict[str, Tensor] = {}
    for component, adapter in adapters.items():
        key = "clip_l+" if component == "clip_l" and family != "sd15" else component
        prefix = "lora_transformer_" if component == "model" and family == "flux" else KOHYA[key]
        for path, tensors in written(adapter, "kohya"):
            found |= {prefix + path.replace(".", "_") + ending: tensor for ending, tensor in tensors.items()}
    return found


def diffusers_tensors(adapters: Adapters, family: str) -> dict[str, Tensor]:
    """Tensors under diffusers' names: "unet.….lora_A.weight", the scale multiplied in.

    InputError for kinds that diffusers' loader does not know."""
    found: dict[str, Tensor] = {}
    for component, adapter in adapters.items():
        if not kinds()[adapter.settings.kind].in_diffusers:
            raise InputError(f"diffusers has no names for {adapter.settings.kind}; write kohya's")
        key = ("transformer" if family == "flux" else "unet") if component == "model" else component
        for path, tensors in written(adapter, "diffusers"):
            found |= {DIFFUSERS[key] + path + ending: tensor for ending, tensor in tensors.items()}
    return found


def kohya_hashes(content: bytes) -> tuple[str, str]:
    """Kohya's two hashes of a file: SHA-256 of everything behind the header, whole, and the old short one."""
    length = int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(content[8 + length :]).hexdigest()
    short = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return whole, short


def metadata(
    settings: Settings,
    family: str,
    examples: Sequence[Example],
    facts: Mapping[str, str],
) -> dict[str, str]:
    """Header entries: kohya's ss_… and modelspec's, and what the user adds.

    facts: what the loop knows: steps done, epochs, losses, when it began."""
    adapter, run, optimizer = settings.adapter, settings.run, settings.optimizer
    kind = kinds()[adapter.kind]
    arguments = kind.arguments()
    if conv := kind.conv_rank(adapter):
        arguments |= {"conv_dim": str(conv), "conv_alpha": str(adapter.conv_alpha or conv)}
    trigger = ", ".join(dict.fromkeys(f.trigger for f in settings.data if f.trigger))
    found = {
        "ss_output_name": settings.name,
        "ss_network_module": kind.module,
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha or adapter.rank),
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": BASE_VERSIONS[family],
        "ss_sd_model_name": settings.model.checkpoint.name,
        "ss_resolution": f"({run.resolution}, {run.resolution})",
        "ss_batch_size_per_device": str(run.batch),
        "ss_gradient_accumulation_steps": str(run.accumulate),
        "ss_gradient_checkpointing": str(run.checkpointing),
        "ss_seed": str(run.seed),
        "ss_mixed_precision": "no" if run.dtype == "fp32" else run.dtype,
        "ss_learning_rate": str(optimizer.rate),
        "ss_unet_lr": str(optimizer.rate),
        "ss_text_encoder_lr": str(optimizer.text_rate or optimizer.rate / 2)
        if adapter.text_encoder
        else "None",
        "ss_optimizer": optimizer.name,
        "ss_lr_scheduler": optimizer.decay,
        "ss_min_snr_gamma": str(settings.noise.min_snr or None),
        "ss_noise_offset": str(settings.noise.offset or None),
        "ss_max_train_steps": str(run.steps),
        "ss_num_train_images": str(sum(example.repeats for example in examples)),
        "ss_dataset_dirs": json.dumps(_folders(examples)),
        "ss_tag_frequency": json.dumps(tag_frequency(examples), ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[family],
        "modelspec.implementation": "diffusers"
        if family == "flux"
        else "https://github.com/Stability-AI/generative-models",
        "modelspec.title": settings.name,
        "modelspec.resolution": f"{run.resolution}x{run.resolution}",
        "modelspec.date": datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat(),
    }
    if family in ("sd15", "sdxl"):
        found["modelspec.prediction_type"] = "epsilon"
    if trigger:
        found["modelspec.trigger_phrase"] = trigger
    return found | dict(facts) | settings.metadata


def _folders(examples: Iterable[Example]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for example in examples:
        entry = found.setdefault(example.path.parent.name, {"n_repeats": example.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found


def write_lora(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], dtype: torch.dtype
) -> str:
    """Write one LoRA file with its hashes in the header; its BLAKE3.

    The hashes are of the file without metadata, as kohya computes them, so that they survive edits of it."""
    ready = {name: _stored(name, value, dtype) for name, value in sorted(tensors.items())}
    bare = save(ready)
    whole, short = kohya_hashes(bare)
    entries = dict(header) | {"sshs_model_hash": whole, "sshs_legacy_hash": short}
    entries["modelspec.hash_sha256"] = f"0x{whole}"
    content = save(ready, {key: entries[key] for key in sorted(entries)})
    write_file(path, content)
    return blake3(content).hexdigest()


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Alphas and DoRA's magnitudes stay float32: half precision of them would show in the weights."""
    exact = name.endswith((".alpha", ".dora_scale", ".lora_magnitude_vector"))
    return (value if exact else value.to(dtype)).contiguous()
