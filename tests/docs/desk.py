"""A folder with what a reader of the documentation has at hand, on the model that comes with Loraloom.

`~` is the folder itself. Files have the names that the pages use:

    ComfyUI/models/      the demo's checkpoint and LoRAs, as ComfyUI lays them out
    workflow.json        the demo's workflow as the editor saves it, with two steps
    workflow_api.json    the same in API format
    picture.png          a picture that carries both
    tutorial.html        a page that prints two workflows
    model.safetensors    the demo's checkpoint; tuned.safetensors: with a few weights changed
    style.safetensors, other.safetensors   LoRAs for it
    flux1-dev.safetensors  a narrow Flux.1
    pictures/            four pictures with captions
    civitai.jpeg         as Civitai's generator writes it: models are called by their numbers
    stable-diffusion-webui/   the same models as A1111 lays them out, and a pickled embedding
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.demo.files import CHECKPOINT, LORAS, MODELS, WORKFLOW
from loraloom.preparation.prepare import Changes, read_workflows
from loraloom.workflow.implemented import known_schemas
from tests.tiny_models import write_flux

STEPS = 2
COLOURS = {"red": (200, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 190), "yellow": (230, 200, 50)}


def lay_out(folder: Path) -> Path:
    """Fill an empty folder."""
    for file in (CHECKPOINT, *(lora.file for lora in LORAS.values())):
        _link(folder / "ComfyUI/models" / file.relative_to(MODELS), file)
    (folder / "model.safetensors").symlink_to(CHECKPOINT)
    _tuned(folder / "tuned.safetensors")
    for name in ("style", "other"):
        (folder / f"{name}.safetensors").symlink_to(LORAS["pixel_art"].file)
    write_flux(folder / "flux1-dev.safetensors")
    editor = quick_workflow()
    (folder / "workflow.json").write_text(json.dumps(editor), "utf-8")
    ((_, graph),) = read_workflows(json.dumps(editor), None, Changes(), known_schemas())
    api = json.dumps(graph.to_api())
    (folder / "workflow_api.json").write_text(api, "utf-8")
    _picture(folder / "picture.png", {"prompt": api, "workflow": json.dumps(editor)})
    printed = "".join(f"<h2>{n}</h2>\n<pre>{json.dumps(editor)}</pre>\n" for n in ("First", "Second"))
    (folder / "tutorial.html").write_text(f"<h1>LoRA</h1>\n{printed}", "utf-8")
    _pictures(folder / "pictures")
    _civitai(folder / "civitai.jpeg", graph.to_api())
    _webui(folder / "stable-diffusion-webui")
    return folder


def quick_workflow() -> dict[str, object]:
    """The demo's workflow with few steps."""
    document = json.loads(WORKFLOW.read_text("utf-8"))
    sampler = next(node for node in document["nodes"] if node["type"] == "KSampler")
    sampler["widgets_values"][2] = STEPS
    return document


def copy(laid_out: Path, folder: Path) -> Path:
    """Another desk like this one."""
    return Path(shutil.copytree(laid_out, folder, symlinks=True))


def _link(place: Path, file: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(file)


def _tuned(path: Path) -> None:
    tensors = load_file(CHECKPOINT)
    for name in [name for name in tensors if "attn2.to_k.weight" in name]:
        weight = tensors[name].float()
        tensors[name] = (weight + 0.1 * weight.flip(0)).to(tensors[name].dtype)
    save_file(tensors, path)


def _picture(path: Path, texts: dict[str, str]) -> None:
    carried = PngInfo()
    for keyword, text in texts.items():
        carried.add_text(keyword, text)
    Image.new("RGB", (128, 128), (120, 90, 60)).save(path, pnginfo=carried)


def _civitai(path: Path, prompt: dict[str, Any]) -> None:
    """In the Exif block of a JPEG; loaders are called `resource-stack`, and further entries are no nodes."""
    prompt["1"]["inputs"]["ckpt_name"] = "urn:air:sd1:checkpoint:civitai:4384@128713"
    prompt["2"]["inputs"]["lora_name"] = "urn:air:sd1:lora:civitai:82098@87153"
    text = json.dumps({**prompt, "extraMetadata": "{}"})
    for number, name in (("1", "resource-stack"), ("2", "resource-stack-1")):
        text = text.replace(f'"{number}": {{', f'"{name}": {{').replace(f'["{number}", ', f'["{name}", ')
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(path, exif=exif)


def _webui(folder: Path) -> None:
    _link(folder / "models/Stable-diffusion" / CHECKPOINT.name, CHECKPOINT)
    _link(folder / "models/Lora/pixel_art.safetensors", LORAS["pixel_art"].file)
    (folder / "embeddings").mkdir()
    vectors = {"string_to_param": {"*": torch.zeros(2, 64)}, "name": "old"}
    torch.save(vectors, folder / "embeddings/old.pt")


def _pictures(folder: Path) -> None:
    folder.mkdir()
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(picture).ellipse((24, 24, 104, 104), fill=colour)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} circle", "utf-8")
