"""Another rank for a LoRA file, module by module."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.lora.file import LoraFile, Module
from loraloom.lora.low_rank import LowRankForm, check_size, reduce_product
from loraloom.lora.recognise import recognise
from loraloom.lora.scale import scale_of
from loraloom.lora.writing import PRECISIONS, write_lora
from loraloom.weights.tensor_file import TensorFile


def resize(
    file: LoraFile,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    precision: str = "fp16",
) -> str:
    """Write the LoRA with at most `rank` ranks per module, or as few as keep `energy` of ‖ΔW‖².

    Modules of other algebras than LoRA stay as they are. Returns what was kept, in one line.
    """
    check_size(rank, energy)
    if rank is None and energy is None:
        raise InputError("give --rank, --energy, or both")
    tensors = TensorFile(file.path)
    dtype = PRECISIONS[precision]
    written: dict[str, Tensor] = {}
    kept = total = 0.0
    ranks: list[int] = []
    untouched = 0
    for module in file.modules:
        form = _form(file, tensors, module, rank, energy)
        if form is None:
            untouched += 1
            written |= {key: tensors.read(key) for key in module.tensors.values()}
            continue
        kept, total = kept + form.kept, total + form.total
        ranks.append(form.rank)
        up, down = (module.tensors[role] for role in ("up", "down"))
        shapes = file.shapes(module)
        written[up] = form.up.reshape(-1, form.rank, *shapes["up"][2:]).to(dtype)
        written[down] = form.down.reshape(form.rank, *shapes["down"][1:]).to(dtype)
        alpha = module.tensors.get("alpha", _alpha_key(up))
        written[alpha] = torch.tensor(float(form.rank), dtype=torch.float32)
        written |= {
            key: tensors.read(key)
            for role, key in module.tensors.items()
            if role not in ("up", "down", "alpha", "gamma")
        }
    written |= {key: tensors.read(key) for key in file.bundled}
    metadata = dict(file.metadata)
    if ranks:
        metadata |= {"ss_network_dim": str(max(ranks)), "ss_network_alpha": str(float(max(ranks)))}
        metadata.pop("lora_adapter_metadata", None)
    write_lora(out, written, metadata)
    share = kept / total if total else 1.0
    line = f"{len(ranks)} modules, ranks {min(ranks, default=0)} to {max(ranks, default=0)}, "
    line += f"{share:.4%} of ‖ΔW‖² kept"
    return line + (f"; {untouched} modules of other algebras left as they are" if untouched else "")


_UP_SUFFIXES = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight", ".lora_B")


def _alpha_key(up: str) -> str:
    """Where a module's alpha goes when the file has none: beside its up factor."""
    for suffix in (
        ".lora_up.weight",
        ".lora_B.weight",
        ".lora_B.default.weight",
        ".lora.up.weight",
        ".lora_B",
    ):
        if up.endswith(suffix):
            return up.removesuffix(suffix) + ".alpha"
    return up.rsplit(".", 2)[0].removesuffix("_lora") + ".alpha"


def _form(
    file: LoraFile, tensors: TensorFile, module: Module, rank: int | None, energy: float | None
) -> LowRankForm | None:
    """The reduced factors with γ in them; None for modules that are no plain LoRA."""
    shapes = file.shapes(module)
    found, _ = recognise(shapes)
    plain = [one for one in found if one.kind == "lora" and one.part is None and "mid" not in one.roles]
    if not plain or {"dora", "magnitude"} & set(shapes):
        return None
    values = file.scalars([key for role, key in module.tensors.items() if role in ("alpha", "gamma")])
    scalars = {role: values[key] for role, key in module.tensors.items() if key in values}
    gamma = scale_of(plain[0], shapes, scalars, None, comfyui=False).gamma
    up = tensors.read(module.tensors["up"], torch.float32).flatten(1) * gamma
    down = tensors.read(module.tensors["down"], torch.float32).flatten(1)
    return reduce_product(up, down, rank, energy)
