"""A trained adapter as LoRA files: kohya's and diffusers' names, with the metadata that readers look for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from blake3 import blake3
from safetensors.torch import save
from torch import Tensor

from loraloom.atomic_file import write_file
from loraloom.errors import InputError
from loraloom.models.family import Family, TrainingFacts
from loraloom.training.adapters import Adapter, copied, written
from loraloom.training.dataset import Example, tag_frequency
from loraloom.training.kind import kinds
from loraloom.training.settings import Settings

Adapters = Mapping[str, Adapter]
"""By component: "model", "clip_l", "clip_g"."""


def kohya_tensors(
    adapters: Adapters, family: Family, take: Callable[[Tensor], Tensor] = copied
) -> dict[str, Tensor]:
    """Tensors under kohya's names: "lora_unet_down_blocks_….lora_down.weight", with alphas.

    Families whose own names fuse layers that are trained apart go by the paths of the module, behind a prefix
    that ComfyUI reads (`TrainingFacts.flat`)."""
    found: dict[str, Tensor] = {}
    facts = training_facts(family)
    for component, adapter in adapters.items():
        prefix = facts.flat if component == "model" else _numbered("lora_te{}_", "", component, family)
        for path, tensors in written(adapter, "kohya", take):
            found |= {prefix + path.replace(".", "_") + ending: tensor for ending, tensor in tensors.items()}
    return found


def diffusers_tensors(adapters: Adapters, family: Family) -> dict[str, Tensor]:
    """Tensors under diffusers' names: "unet.….lora_A.weight", the scale multiplied in.

    InputError for kinds that diffusers' loader does not know."""
    found: dict[str, Tensor] = {}
    for component, adapter in adapters.items():
        if not kinds()[adapter.settings.kind].in_diffusers:
            raise InputError(f"diffusers has no names for {adapter.settings.kind}; write kohya's")
        is_model = component == "model"
        prefix = family.lora.dotted if is_model else _numbered("text_encoder{}.", "_", component, family)
        for path, tensors in written(adapter, "diffusers"):
            found |= {prefix + path + ending: tensor for ending, tensor in tensors.items()}
    return found


def training_facts(family: Family) -> TrainingFacts:
    """InputError for a family that is not trained."""
    if family.training is None:
        raise InputError(f"{family.title} is not trained here")
    return family.training


def _numbered(prefix: str, joint: str, encoder: str, family: Family) -> str:
    """A prefix with the number that an encoder has among those of its family, as kohya ("lora_te1_", a single
    one without) and diffusers ("text_encoder.", "text_encoder_2.") number them."""
    place = family.prompt.encoders.index(encoder) + 1
    bare = len(family.prompt.encoders) == 1 or (joint and place == 1)
    return prefix.format("" if bare else f"{joint}{place}")


def kohya_hashes(content: bytes) -> tuple[str, str]:
    """Kohya's two hashes of a file: SHA-256 of everything behind the header, whole, and the old short one."""
    length = int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(content[8 + length :]).hexdigest()
    short = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return whole, short


def metadata(
    settings: Settings,
    family: Family,
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
        "software": "Loraloom",
        "ss_output_name": settings.name,
        "ss_network_module": kind.module,
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha or adapter.rank),
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": family.lora.base_version,
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
        "modelspec.architecture": training_facts(family).architecture,
        "modelspec.implementation": training_facts(family).implementation,
        "modelspec.title": settings.name,
        "modelspec.resolution": f"{run.resolution}x{run.resolution}",
        "modelspec.date": datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat(),
    }
    if stated := training_facts(family).stated_prediction:
        found["modelspec.prediction_type"] = stated
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
