"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast

import typer

from loraloom.cli.console import say
from loraloom.errors import InputError
from loraloom.models.computing import AttentionName, Computing, Fast

Dtype: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Storage: TypeAlias = Literal["native", "widened"]
Compat: TypeAlias = Literal["trainer", "comfyui"]


def _tell_missing(folders: list[Path] | None) -> list[Path] | None:
    for folder in folders or ():
        if not folder.is_dir():
            say(f"note: --models {folder}: there is no such folder", stderr=True)
    return folders


ModelsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        callback=_tell_missing,
        help="Folder laid out like ComfyUI's models/ (may be given several times). "
        "Default: $LORALOOM_MODELS, ./models, ./ComfyUI/models or ~/ComfyUI/models.",
        show_default=False,
    ),
]
CustomNodesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--custom-nodes",
        metavar="DIR",
        help="Folder of node packs written to ComfyUI's contract (may be given several times). "
        "Their code runs with all your rights.",
        show_default=False,
    ),
]
ExtraPathsOption = Annotated[
    list[Path] | None,
    typer.Option("--extra-model-paths", help="ComfyUI's extra_model_paths.yaml.", show_default=False),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:MODEL[:CLIP]]",
        help="Put a LoRA right behind the model's loader. May be given several times.",
        show_default=False,
    ),
]
OutputDirOption = Annotated[Path, typer.Option(help="Where pictures go.")]
InputDirOption = Annotated[Path, typer.Option(help="Where LoadImage finds pictures.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, xpu or mps.")]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
LARGEST = 1 << 60
"""Bytes that no device has."""


def memory_size(text: str) -> int:
    """ "8G", "6.5G", "900M" or bytes → bytes."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)(?:i?B)?", text.strip().upper().replace("IB", "B"))
    size = float(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= size < LARGEST:
        raise typer.BadParameter(f"{text!r} is no amount of memory; write it like 8G, 6.5G or 900M")
    return int(size)


VramOption = Annotated[
    int | None,
    typer.Option(
        "--vram",
        parser=memory_size,
        metavar="SIZE",
        help="Use at most so much of the device's memory: 8G, 900M. What does not fit is fetched when used.",
    ),
]
MOST_ROWS = 16
"""Runs that are begun together at most where nobody says how many."""


def rows_at_once(batch: str) -> int:
    """What --batch says → runs that are begun together at most."""
    if batch in ("auto", "off"):
        return MOST_ROWS if batch == "auto" else 1
    if not batch.isascii() or not batch.isdigit() or not 1 <= int(batch) <= 256:
        raise InputError(f"--batch {batch!r}: expected auto, off, or a number from 1 to 256")
    return int(batch)


BatchOption = Annotated[
    str,
    typer.Option(
        "--batch",
        metavar="auto|off|N",
        help="Run what shares a base model as rows of one batch, each row with its LoRAs, seed and prompt, "
        "as many as memory takes, at most N (auto: 16).",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(help="Type to compute in. auto: bf16 where the device computes it natively, else fp32."),
]
StorageOption = Annotated[
    Storage,
    typer.Option(
        help="How quantised weights are multiplied: as ComfyUI does for their format (int8 rounds the inputs "
        "too), or with their values in the type to compute in."
    ),
]
AttentionOption = Annotated[
    AttentionName,
    typer.Option(
        "--attention",
        help="What computes the attention of diffusion networks: PyTorch's choice, one of its kernels, or a "
        "package that is installed. What cannot compute a model's attention is an error.",
    ),
]
NarrowOption = Annotated[
    bool,
    typer.Option(
        "--narrow-weights",
        help="Keep weights as narrow as their file has them and widen each when it is used: half the memory "
        "for a file of fp16 computed in fp32, and the same picture, but more time.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the blocks of diffusion networks for this machine: minutes the first time, then less "
        "time for each step.",
    ),
]
FastOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fast",
        help="Another picture, sooner. steps: leave out evaluations whose output would hardly differ. "
        "tokens: UNets attend to fewer tokens. vae: a tiny autoencoder of the folder vae_approx decodes.",
    ),
]
CompatOption = Annotated[
    Compat,
    typer.Option(help="Whose result to give where ComfyUI computes a LoRA differently from its trainer."),
]
StrictLoraOption = Annotated[
    bool, typer.Option("--strict-lora", help="Fail when any key of a LoRA finds no place.")
]


def computing(
    attention: AttentionName, narrow_weights: bool, compiled: bool, fast: list[str] | None
) -> Computing:
    """What the options say. InputError for names that are none."""
    return Computing(attention, narrow_weights, compiled, tuple(cast("list[Fast]", fast or [])))
