"""A family's narrow models on disk, and workflows over them, to be held to ComfyUI's figures.

What the figures of a family were measured on stands in `tests/families/models/NAME.py`, which ends in NARROW;
the figures in `tests/data/families/NAME.npz` and `NAME.json.gz` (scripts/family_figures.py copied them), and
those of workflows with pictures and reference latents in `NAME_edit.*`.
"""

from __future__ import annotations

import gzip
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tests.families.models as models_package
from loraloom.models.recognition import families
from loraloom.result import Run
from loraloom.session import Session
from loraloom.weights.tensor_file import TensorFile
from tests.families import loras
from tests.narrow_models import Weights

FOLDER = Path(__file__).parents[1] / "data/families"
Api = dict[str, Any]
Write = Callable[[Path], Path]
Edit = Callable[[str, Api], tuple[Api, Api]]
"""Name of a case, what is stated of it → further nodes, and those inputs of the sampler that they give:
"positive", "negative", "latent_image", and "model" where it is not the loaded one. They may link to "unet",
"clip" and "vae", and to nodes of `tests.families.figure_nodes`."""


def api_node(class_type: str, **inputs: object) -> Api:
    return {"class_type": class_type, "inputs": inputs}


def aura_shift(shift: float) -> Api:
    return api_node("ModelSamplingAuraFlow", shift=shift)


def flux_shift(shift: float) -> Api:
    return api_node("ModelSamplingFlux", max_shift=shift, base_shift=shift, width=1024, height=1024)


@dataclass(frozen=True)
class Narrow:
    """network: makes the weights. clip_type: the CLIP loader's. encoders, autoencoder: what writes them.
    loras: kind → modules of that file. empty_latent: the class that makes empty latents.
    shift: makes the node that shifts the schedule, without its model. guidance: case → that of its prompt.
    edit: makes the workflows of `NAME_edit`. others: further tensors of the network's file."""

    name: str
    network: Callable[[], Weights]
    clip_type: str
    encoders: Mapping[str, Write]
    autoencoder: Write
    loras: Callable[[Weights], Mapping[str, loras.Modules]] = lambda weights: {}
    empty_latent: str = "EmptySD3LatentImage"
    shift: Callable[[float], Api] = aura_shift
    newer_names: Callable[[str], Iterable[str]] = lambda weight: ()
    guidance: Mapping[str, float | None] = field(default_factory=lambda: dict[str, float | None]())
    edit: Edit | None = None
    others: Mapping[str, torch.Tensor] = field(default_factory=lambda: dict[str, torch.Tensor]())


@cache
def narrow_models() -> dict[str, Narrow]:
    names = [info.name for info in pkgutil.iter_modules(models_package.__path__)]
    found = [importlib.import_module(f"{models_package.__name__}.{name}").NARROW for name in names]
    return {one.name: one for one in found}


@cache
def narrow_by_family() -> dict[str, list[Narrow]]:
    """Family → its narrow models, those that have figures of pictures made from prompts alone first."""
    found: dict[str, list[Narrow]] = {}
    for narrow in narrow_models().values():
        shapes = {name: shape for name, (shape, _, _) in narrow.network().known.items()}
        (family,) = [family.name for family in families() if family.matches(shapes)]
        found.setdefault(family, []).append(narrow)
    return {name: sorted(of, key=lambda one: not stated(one.name)["cases"]) for name, of in found.items()}


@cache
def stated(name: str) -> Api:
    """What is said of a family's figures: cases, LoRA files, names; of each nothing where there are none."""
    path = FOLDER / f"{name}.json.gz"
    said: Api = json.loads(gzip.decompress(path.read_bytes())) if path.is_file() else {}
    return {key: {} for key in ("cases", "lora", "lora_names")} | said


def goes_without(family: str, case: str) -> bool:
    """Whether ComfyUI knows no name in a LoRA file of the case."""
    figures = stated(family)
    files = (figures["lora"][f"{kind}.safetensors"] for kind, _ in figures["cases"][case]["loras"])
    return any(file["weights_changed"] == 0 for file in files)


@cache
def measured(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as figures:
        return dict(figures)


class Shelf:
    """Folders of models that are written when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: set[Path] = set()

    def put(self, place: str, write: Write) -> str:
        """Name of the file in its folder."""
        path = self.folder / place
        if path not in self._written:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            self._written.add(path)
        return path.name

    def network(self, narrow: Narrow) -> str:
        place = f"diffusion_models/{narrow.name}.safetensors"
        return self.put(place, lambda path: narrow.network().write(path, narrow.others))

    def lora(self, narrow: Narrow, kind: str) -> str:
        place = f"loras/{narrow.name}_{kind}.safetensors"
        return self.put(place, lambda path: write_lora(path, narrow, kind))


def write_lora(path: Path, narrow: Narrow, kind: str) -> Path:
    return loras.write(path, narrow.name, kind, narrow.loras(narrow.network())[kind])


def _clip_loader(shelf: Shelf, narrow: Narrow) -> Api:
    names = [shelf.put(f"text_encoders/{name}.safetensors", write) for name, write in narrow.encoders.items()]
    if len(names) == 1:
        return api_node("CLIPLoader", clip_name=names[0], type=narrow.clip_type)
    numbered = {f"clip_name{number}": name for number, name in enumerate(names, 1)}
    if len(names) == 2:
        return api_node("DualCLIPLoader", **numbered, type=narrow.clip_type)
    return api_node("TripleCLIPLoader", **numbered)


def _guided(graph: Api, guidance: float | None) -> Api:
    """The node that tells the positive prompt its guidance, or that there is none."""
    graph["prompt"] = graph["positive"]
    if guidance is None:
        return api_node("FluxDisableGuidance", conditioning=["prompt", 0])
    return api_node("FluxGuidance", conditioning=["prompt", 0], guidance=guidance)


def graph_of(shelf: Shelf, narrow: Narrow, case: Api) -> Api:
    """The case's workflow, as people write it."""
    graph = _loaders(shelf, narrow)
    size = {"width": case["width"], "height": case["height"], "batch_size": case["batch"]}
    graph["latent"] = api_node(narrow.empty_latent, **size)
    model = ["unet", 0]
    for index, (kind, strength) in enumerate(case["loras"]):
        lora = {"lora_name": shelf.lora(narrow, kind), "strength_model": strength}
        graph[f"lora{index}"] = api_node("LoraLoaderModelOnly", model=model, **lora)
        model = [f"lora{index}", 0]
    if case["shift"] is not None:
        graph["shift"] = narrow.shift(case["shift"])
        graph["shift"]["inputs"]["model"] = model
        model = ["shift", 0]
    for side in ("positive", "negative"):
        graph[side] = api_node("CLIPTextEncode", clip=["clip", 0], text=case[side])
    if "guidance" in case:
        graph["positive"] = _guided(graph, case["guidance"])
    given = {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return graph | _sampled(case, {"model": model, **given})


def edit_graph_of(shelf: Shelf, narrow: Narrow, name: str) -> Api:
    """The workflow of a case with pictures or reference latents."""
    assert narrow.edit is not None
    case = stated(f"{narrow.name}_edit")["cases"][name]
    nodes, given = narrow.edit(name, case)
    return {**_loaders(shelf, narrow), **nodes, **_sampled(case, {"model": ["unet", 0], **given})}


def _loaders(shelf: Shelf, narrow: Narrow) -> Api:
    vae = shelf.put(f"vae/{narrow.autoencoder.__name__}.safetensors", narrow.autoencoder)
    return {
        "unet": api_node("UNETLoader", unet_name=shelf.network(narrow), weight_dtype="default"),
        "clip": _clip_loader(shelf, narrow),
        "vae": api_node("VAELoader", vae_name=vae),
    }


def _sampled(case: Api, given: Api) -> Api:
    """The sampler and what becomes of its latent. Cases that do not say how are sampled by Euler."""
    return {
        "sample": api_node(
            "KSampler",
            **given,
            seed=case["seed"], steps=case["steps"], cfg=case["cfg"],
            sampler_name=case.get("sampler", "euler"), scheduler=case.get("scheduler", "simple"),
            denoise=case.get("denoise", 1.0),
        ),
        "decode": api_node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": api_node("SaveImage", images=["decode", 0], filename_prefix="figure"),
        "latents": api_node("SaveLatent", samples=["sample", 0], filename_prefix="figure"),
    }  # fmt: skip


def run_case(session: Session, shelf: Shelf, narrow: Narrow, name: str) -> Run:
    case = stated(narrow.name)["cases"][name]
    if name in narrow.guidance:
        case = {**case, "guidance": narrow.guidance[name]}
    return session.run(graph_of(shelf, narrow, case))


def assert_measured(run: Run, figures: str, case: str, wider: int = 1) -> None:
    """The latent and the pictures of a run are those of a measured case. wider: times by which the latent may
    be further off; pictures are then those of latents that far away."""
    path = next(output.path for output in run.outputs if output.path.suffix == ".latent")
    latent = TensorFile(path).read("latent_tensor", torch.float32).numpy()
    expected = measured(figures)[f"{case}|latent"]
    assert latent.shape == expected.shape
    assert np.linalg.norm(latent - expected) <= wider * 1e-4 * np.linalg.norm(expected)
    pictures = np.stack([np.asarray(picture) for picture in run.images]).astype(int)
    away = np.abs(pictures - measured(figures)[f"{case}|image"].astype(int))
    if wider == 1:
        assert (away <= 1).mean() >= 0.999 and away.max() <= 3
    else:
        assert (away <= 2).mean() >= 0.99
