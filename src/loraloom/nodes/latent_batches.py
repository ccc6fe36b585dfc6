"""Nodes that join, repeat and divide batches of latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from loraloom.engine.node import Choice, Number, Options, node
from loraloom.nodes.composition import require_one_kind
from loraloom.nodes.sockets import BatchSize, Latent, LatentValue
from loraloom.resampling import as_batch, repeat_to, resize, resize_mask

PIXELS_PER_LATENT = 8

BatchSizes = Annotated[list[BatchSize], Options({"default": 1})]


@node("RepeatLatentBatch", category="latent/batch", display_name="Repeat Latent Batch")
def repeat_latents(samples: Latent, amount: Annotated[int, Number(min=1, max=64)] = 1) -> Latent:
    """Repeat a batch; each copy gets noise of its own."""
    whole = samples["samples"]
    result: LatentValue = {**samples, "samples": whole.repeat(amount, *[1] * (whole.ndim - 1))}
    if "noise_mask" in samples and len(mask := as_batch(samples["noise_mask"])) > 1:
        result["noise_mask"] = repeat_to(mask, len(whole)).repeat(amount, 1, 1)
    if "batch_index" in samples:
        index = samples["batch_index"]
        span = max(index) - min(index) + 1
        result["batch_index"] = [number + copy * span for copy in range(amount) for number in index]
    return result


@node("LatentFromBatch", category="latent/batch", display_name="Latent From Batch")
def latents_from_batch(
    samples: Latent,
    batch_index: Annotated[int, Number(min=0, max=63)] = 0,
    length: Annotated[int, Number(min=1, max=64)] = 1,
) -> Latent:
    """Take some latents out of a batch; they keep the noise that they have there."""
    whole = samples["samples"]
    start = min(len(whole) - 1, batch_index)
    taken = slice(start, start + min(len(whole) - start, length))
    index = samples.get("batch_index", list(range(len(whole))))
    result: LatentValue = {**samples, "samples": whole[taken].clone(), "batch_index": index[taken]}
    if "noise_mask" in samples and len(mask := as_batch(samples["noise_mask"])) > 1:
        result["noise_mask"] = repeat_to(mask, len(whole))[taken].clone()
    return result


@node("LatentBatch", category="latent/batch", v3=True, python_module="comfy_extras.nodes_latent")
def join_latents(samples1: Latent, samples2: Latent) -> Latent:
    """Join two batches; the second is resized to the first."""
    first, second = samples1["samples"], samples2["samples"]
    require_one_kind(first, second)
    if first.shape[1:] != second.shape[1:]:
        second = resize(second, first.shape[-1], first.shape[-2], "bilinear", "center")
    index = [
        number
        for latent in (samples1, samples2)
        for number in latent.get("batch_index", range(len(latent["samples"])))
    ]
    return {**samples1, "samples": torch.cat([first, second]), "batch_index": index}


@node(
    "LatentBatchSeedBehavior", category="latent/advanced", v3=True, python_module="comfy_extras.nodes_latent"
)
def set_seed_behavior(
    samples: Latent, seed_behavior: Annotated[str, Choice(("random", "fixed"))] = "fixed"
) -> Latent:
    """Give all latents of a batch the same noise ("fixed"), or each its own ("random")."""
    result: LatentValue = {**samples}
    index = result.pop("batch_index", [0])
    if seed_behavior == "fixed":
        result["batch_index"] = index[:1] * len(samples["samples"])
    return result


@node(
    "RebatchLatents",
    category="latent/batch",
    display_name="Rebatch Latents",
    input_is_list=True,
    output_is_list=(True,),
    v3=True,
    python_module="comfy_extras.nodes_rebatch",
)
def rebatch_latents(*, latents: list[Latent], batch_size: BatchSizes) -> list[Latent]:
    """Divide a list of batches into batches of another size; only latents of one size share a batch."""
    result: list[LatentValue] = []
    for run in _runs_of_one_shape(latents):
        samples = torch.cat([part.samples for part in run])
        masks = torch.cat([part.mask for part in run])
        index = [number for part in run for number in part.index]
        for start in range(0, len(samples), batch_size[0]):
            taken = slice(start, start + batch_size[0])
            batch: LatentValue = {"samples": samples[taken], "batch_index": index[taken]}
            if bool((masks[taken] != 1).any()):
                batch["noise_mask"] = masks[taken]
            result.append(batch)
    return result


@dataclass(frozen=True, slots=True)
class _Batch:
    """A latent with the mask and the indices that it has or would have."""

    samples: Tensor
    mask: Tensor
    index: list[int]


def _runs_of_one_shape(latents: list[LatentValue]) -> Iterator[list[_Batch]]:
    """Neighbours of one size."""
    run: list[_Batch] = []
    count = 0
    for latent in latents:
        samples = latent["samples"]
        if run and run[0].samples.shape[1:] != samples.shape[1:]:
            yield run
            run = []
        index = latent.get("batch_index", list(range(count, count + len(samples))))
        run.append(_Batch(samples, _full_mask(latent), index))
        count += len(samples)
    if run:
        yield run


def _full_mask(latent: LatentValue) -> Tensor:
    """(B, 8h, 8w) the noise mask of each latent, all ones where there is none."""
    samples = latent["samples"]
    height, width = (side * PIXELS_PER_LATENT for side in samples.shape[-2:])
    if "noise_mask" not in latent:
        return torch.ones(len(samples), height, width)
    return repeat_to(resize_mask(latent["noise_mask"], width, height), len(samples))
