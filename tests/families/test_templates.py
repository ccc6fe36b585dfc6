"""ComfyUI's own templates of the newer families, run from end to end on their narrow models.

They are read from the installed package `comfyui-workflow-templates-json`; sizes, steps and texts are short.
What stands in a branch that is switched off must be there, and is not opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.nodes import images
from loraloom.session import Session
from loraloom.workflow.graph import Graph, Value
from loraloom.workflow.sources import read_source
from tests.families.bench import Narrow, Shelf, narrow_models, write_lora
from tests.families.models import flux1_kontext
from tests.nodes.test_picture_styles import write_encoder, write_style
from tests.nodes.test_templates import small

PACKAGE = find_spec("comfyui_workflow_templates_json")
FOLDER = Path((PACKAGE.submodule_search_locations or [""])[0]) / "templates" if PACKAGE else Path()
pytestmark = pytest.mark.skipif(
    not (FOLDER / "image_krea2_turbo_t2i.json").is_file(),
    reason="the templates of comfyui-workflow-templates-json 0.1.123 are not installed",
)

TEMPLATES = [
    ("qwen_image21", "image_qwen_image_2_1_t2i"),
    ("qwen_image21", "image_qwen_image_2_1_turbo_t2i"),
    ("qwen_image21", "image_qwen_image_2_1_image_edit"),
    ("qwen_image21", "image_qwen_image_2_1_turbo_image_edit"),
    ("qwen_image21", "image_qwen_image_2_1_background_removal"),
    ("krea2", "image_krea2_turbo_t2i"),
    ("krea2", "image_krea2_turbo_t2i_int8"),
    ("krea2", "image_krea2_turbo_int8_image_style_reference"),
    ("flux2_dev", "image_flux2"),
    ("flux2_dev", "image_flux2_text_to_image"),
    ("flux2_klein", "image_flux2_klein_text_to_image"),
    ("flux2_klein", "image_flux2_text_to_image_9b"),
    ("flux2_klein", "image_flux2_klein_image_edit_4b_base"),
    ("flux2_klein", "image_flux2_klein_image_edit_9b_distilled"),
    ("flux2_klein", "image_flux2_klein_9b_kv_image_edit"),
    ("flux1_kontext", "flux_kontext_dev_basic"),
    ("flux1_kontext", "flux_redux_model_example"),
    ("flux1_fill", "flux_fill_inpaint_example"),
    ("flux1_fill", "flux_fill_outpaint_example"),
    ("flux1_canny", "flux_canny_model_example"),
]
SHORT: dict[str, dict[str, Value]] = {
    "ResolutionSelector": {"megapixels": 0.03},
    "TextEncodeQwenImage21": {"resolution": 128},
    "TextGenerate": {"max_length": 8},
    "PrimitiveBoolean": {"value": True},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "ImagePadForOutpaint": {"left": 16, "top": 0, "right": 8, "bottom": 0},
    "KSampler": {"steps": 2},
}
"""Inputs that keep a run short, and every switch of a template that has one turned on."""


def place_files(shelf: Shelf, narrow: Narrow, graph: Graph) -> None:
    """Writes the files that a template names: networks, LoRAs, pictures."""
    encoder = next(iter(narrow.encoders.values()))
    for node in graph.nodes.values():
        match node.class_type, {**node.inputs}:
            case "UNETLoader", {"unet_name": str(name)}:
                shelf.put(f"diffusion_models/{name}", lambda path: narrow.network().write(path))
            case "CLIPLoader", {"clip_name": str(name)}:
                shelf.put(f"text_encoders/{name}", encoder)
            case "DualCLIPLoader", {"clip_name1": str(first), "clip_name2": str(second)}:
                for name in (first, second):
                    write = next(write for kind, write in narrow.encoders.items() if kind in name)
                    shelf.put(f"text_encoders/{name}", write)
            case "CLIPVisionLoader", {"clip_name": str(name)}:
                shelf.put(f"clip_vision/{name}", lambda path: write_encoder(path, "siglip"))
            case "StyleModelLoader", {"style_model_name": str(name)}:
                shelf.put(f"style_models/{name}", lambda path: write_style(path, flux1_kontext.TEXT))
            case "VAELoader", {"vae_name": str(name)}:
                shelf.put(f"vae/{name}", narrow.autoencoder)
            case "LoraLoaderModelOnly", {"lora_name": str(name)}:
                shelf.put(f"loras/{name}", lambda path: write_lora(path, narrow, "peft"))
            case "LoadImage", {"image": str(name)}:
                shelf.put(f"input/{name}", draw)
            case _:
                pass


def draw(path: Path) -> Path:
    noise = np.random.default_rng(5).integers(0, 256, (96, 128, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    (picture.convert("RGB") if path.suffix in (".jpg", ".jpeg") else picture).save(path)
    return path


def short(graph: Graph) -> Graph:
    graph = small(graph)
    for node in list(graph.nodes.values()):
        graph = graph.with_inputs(node.id, SHORT.get(node.class_type, {}))
        value = node.inputs.get("value")
        if node.class_type == "PrimitiveInt" and isinstance(value, int):  # a side of the picture, or steps
            graph = graph.with_inputs(node.id, {"value": 64 if value >= 256 else 2})
    return graph


@pytest.fixture(scope="module")
def session(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    output = tmp_path_factory.mktemp("output")
    with Session(shelf.folder, output_dir=output, input_dir=shelf.folder / "input", dtype="fp32") as made:
        yield made


@pytest.mark.parametrize(("family", "name"), TEMPLATES)
def test_a_template_runs(
    session: Session, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, family: str, name: str
) -> None:
    monkeypatch.setattr(images, "KONTEXT_SIZES", ((96, 128), (128, 96)))  # of a megapixel else
    narrow = narrow_models()[family]
    graph = read_source(FOLDER / f"{name}.json")[0].graph()
    place_files(shelf, narrow, graph)
    result = session.run(short(graph))
    assert result.images
    for picture in result.images:
        assert np.asarray(picture).std() > 1, "a picture of one colour"
        assert picture.mode == ("RGBA" if family == "qwen_image21" else "RGB")
    loras = sum(node.class_type.startswith("Lora") for node in graph.nodes.values())
    assert len(result.receipts) == loras
    assert all(receipt["complete"] for receipt in result.receipts)
